"""The package where parts of it are missing: it imports in silence, works, and says what to do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import ROOT, run_python

USE = """
import torch, gencore
from gencore import functional as F
x = torch.randn(3, 4, requires_grad=True)
z, kl = F.reparameterize_kl(x, x)
F.bias_act(x)
(z.sum() + kl.sum()).backward()
print(gencore.__file__)
print(gencore.explain("reparameterize_kl", x, x))
try:
    F.reparameterize_kl(x, x, impl="cpu")
except gencore.UnsupportedImplementation as error:
    print("refused:", error)
print(gencore.env())
"""


def _copy(to: Path) -> Path:
    """The package as an installation has it, without its shared libraries."""
    ignore = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    shutil.copytree(ROOT / "gencore", to / "gencore", ignore=ignore)
    shutil.copytree(ROOT / "kernels", to / "gencore" / "kernels", ignore=ignore)
    return to / "gencore"


def _use(package: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    silent = run_python("-c", "import gencore", cwd=package.parent, PYTHONPATH=str(package.parent), **environment)
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")
    result = run_python("-c", USE, cwd=package.parent, PYTHONPATH=str(package.parent), **environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(package)), "another copy of the package was imported"
    return result


def test_without_the_extension(tmp_path: Path) -> None:
    result = _use(_copy(tmp_path))
    assert result.stderr.count("RuntimeWarning: gencore runs on plain PyTorch, at its speed") == 1
    assert "installed without building its C++ extension; run `make build` in a checkout" in result.stderr
    out = result.stdout
    assert "runs 'reference'" in out
    assert "refused: reparameterize_kl: impl='cpu' cannot run here: the C++ extension is not loaded" in out
    assert "missing: C++ extension (impl='cpu')" in out
    assert "why: gencore was installed without building its C++ extension" in out
    assert "fix: run `make build` in a checkout" in out
    assert "missing: memory extension (gencore.memory)" in out


def test_the_reason_of_a_failed_build_is_told(tmp_path: Path) -> None:
    package = _copy(tmp_path)
    (package / "_build.json").write_text('{"built": false, "reason": "no C++ compiler was found"}')
    assert "why: no C++ compiler was found" in _use(package).stdout


def test_with_a_broken_extension(tmp_path: Path) -> None:
    package = _copy(tmp_path)
    (package / "_C.so").write_bytes(b"this is no shared library")
    (package / "_build.json").write_text('{"built": true, "torch": "1.0"}')
    out = _use(package).stdout
    assert "runs 'reference'" in out
    assert "_C.so does not load" in out
    assert "built with torch 1.0" in out


def test_plain_pytorch_that_was_asked_for_is_no_surprise(tmp_path: Path) -> None:
    assert _use(_copy(tmp_path), GENCORE_BACKEND="reference").stderr == ""


def test_without_triton(tmp_path: Path) -> None:
    """A directory that hides triton: the import finds nothing."""
    package = _copy(tmp_path)
    code = "import sys; sys.modules['triton'] = None\n" + USE
    result = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(package))
    assert "pip install 'gencore[triton]'" in result.stdout


def test_the_command_line_reports() -> None:
    result = run_python("-m", "gencore", "env")
    assert result.returncode == 0
    for fact in ("torch", "C++ extension", "processor", "threads"):
        assert fact in result.stdout
    assert run_python("-m", "gencore", "nonsense").returncode == 2


@pytest.mark.parametrize("module", ["gencore", "gencore.kernels", "gencore.nn", "gencore.models"])
def test_modules_import_in_silence(module: str) -> None:
    result = run_python("-W", "error::DeprecationWarning:gencore", "-c", f"import {module}")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
