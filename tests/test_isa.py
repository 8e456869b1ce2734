"""Every instruction set of the build: the same tests pass, and its code stays within its own namespace."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gencore.extension import EXTENSION, build_record
from tests.processes import ROOT, run_pytest, run_python

ISAS = build_record().get("isas", [])
# What the kernels of one instruction set may do otherwise than another's: values and gradients in both layouts that
# kernels know, over drawn shapes, unwritten memory, bits that hang on threads. What comes before a kernel is the same
# code for all: the copy of other layouts, refusals, autocast, the formulas of second derivatives, compilation.
TESTS = [f"tests/test_{name}.py" for name in ("parity", "determinism", "poison", "conv_norm_act")]
TESTS += [
    f"tests/test_conv.py::{name}"
    for name in ("test_matches_float64", "test_matches_float64_for_any_arguments", "test_to_few_channels", "test_scale")
]
TESTS += [
    f"tests/test_conv_{name}.py::{test}"
    for name in ("winograd", "line")
    for test in ("test_matches_float64", "test_bits_do_not_depend_on_threads")
]
ELSEWHERE = ["permuted", "sliced", "expanded", "refused", "autocast", "second_derivatives", "compile"]

pytestmark = pytest.mark.skipif(not EXTENSION.loaded, reason="the C++ extension was not built")


def _active(wanted: str) -> str:
    code = "from gencore.extension import EXTENSION; print(EXTENSION.isa)"
    return run_python("-c", code, GENCORE_CPU_ISA=wanted).stdout.strip()


# The best one is what the main process runs.
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != EXTENSION.isa])
def test_generic_tests_pass(isa: str, record_property: Callable[[str, object], None]) -> None:
    if _active(isa) != isa:
        pytest.skip(f"this processor does not run {isa}")
    selected = ("--only-impl=cpu", "-k", f"not ({' or '.join(ELSEWHERE)})", "-m", "not gpu and not slow")
    last = run_pytest(*TESTS, *selected, GENCORE_CPU_ISA=isa)
    record_property("process", f"CPU kernels with GENCORE_CPU_ISA={isa}, in a process of its own: {last}")


def test_an_unknown_instruction_set_changes_nothing() -> None:
    assert _active("quantum") == _active("")


def test_no_symbol_leaves_its_instruction_set() -> None:
    """A weak symbol (an inline function, a template) in two object files is merged by the linker: the AVX-512 copy of a
    shared helper would then run on a processor without AVX-512. So each object may define only names of its own."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm (binutils)")
    objects = [p for isa in ISAS for p in (ROOT / "build").glob(f"ninja-*/*.{isa}.o")]
    assert len(objects) >= len(ISAS), "the build has left no object files"
    for path in objects:
        bad = leaked_symbols(nm, path, path.suffixes[-2].strip("."))
        assert not bad, f"{path.name} defines names that another instruction set's object may define as well: {bad}"


def leaked_symbols(nm: str, path: Path, isa: str) -> list[str]:
    """Defined, externally visible symbols of an object file outside ``gencore::<isa>``."""
    lines = subprocess.run(
        [nm, "--defined-only", "--extern-only", str(path)], capture_output=True, text=True, check=True
    )
    names = [line.split()[-1] for line in lines.stdout.splitlines() if line.strip()]
    own = re.compile(rf"^_Z(TV|TI|TS)?N?K?7gencore{len(isa)}{isa}")
    return [name for name in names if not own.match(name)]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_symbol_check_finds_a_leak(tmp_path: Path) -> None:
    source = tmp_path / "leak.cpp"
    source.write_text(
        "#include <vector>\nnamespace gencore::avx2 { void f(std::vector<double>& v) { v.push_back(1.0); } }\n"
        "inline int helper(int x) { return x + 1; }\nnamespace gencore::avx2 { int (*g())(int) { return helper; } }\n"
    )
    subprocess.run(["g++", "-std=c++20", "-O0", "-c", str(source), "-o", str(tmp_path / "leak.avx2.o")], check=True)
    bad = leaked_symbols("nm", tmp_path / "leak.avx2.o", "avx2")
    assert any("helper" in name for name in bad)
    assert not any("gencore4avx2" in name[:20] for name in bad)
