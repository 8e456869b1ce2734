"""What is built for other machines: the source archive holds the sources and nothing compiled, the wheel works."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

from tests.processes import ROOT, run_python

IN_THE_WHEEL = {"gencore": "gencore", "kernels": "gencore/kernels"}


def _run(*command: str, **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=os.environ | environment
    )
    assert result.returncode == 0, result.stdout + result.stderr


def _sources(folder: str) -> Iterator[Path]:
    for suffix in ("*.py", "*.cpp", "*.h", "*.j2", "py.typed"):
        yield from (path.relative_to(ROOT) for path in (ROOT / folder).rglob(suffix))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of this checkout and a wheel made from it, by a machine without a compiler."""
    out = tmp_path_factory.mktemp("dist")
    _run("build", "--no-isolation", "--outdir", str(out), str(ROOT), CXX="/nonexistent/g++")
    return out


def test_every_package_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {
        ".".join(Path(name, path.parent.relative_to(ROOT / folder)).parts)
        for folder, name in IN_THE_WHEEL.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    found = {name.replace("/", ".") for name in found}
    assert set(project["tool"]["setuptools"]["packages"]) == found


def test_the_source_archive_is_whole_and_holds_nothing_compiled(archives: Path) -> None:
    (path,) = archives.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("benchmarks", "csrc", "gencore", "kernels", "tests"):
        assert {str(source) for source in _sources(folder)} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc", "_build.json"))]


def test_the_wheel_is_whole_and_works_elsewhere(archives: Path, tmp_path: Path) -> None:
    (path,) = archives.glob("*.whl")
    names = set(zipfile.ZipFile(path).namelist())
    for folder, name in IN_THE_WHEEL.items():
        assert {str(Path(name) / source.relative_to(folder)) for source in _sources(folder)} <= names
    assert not [name for name in names if name.endswith(".so")], "a library of an earlier build"

    _run("pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(tmp_path), str(path))
    script = "import gencore; print(gencore.__file__); print(gencore.env())"
    out = run_python("-c", script, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith(str(tmp_path))
    assert "why: no C++ compiler was found; install g++" in out.stdout
