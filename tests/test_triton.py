"""Triton's kernels by the interpreter, in a process of its own: it must be chosen before a kernel is defined."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gencore.extension import HAVE_TRITON
from tests.processes import run_pytest

TESTS = ["tests/interpreter", "tests/test_parity.py", "tests/test_determinism.py", "tests/test_poison.py"]

pytestmark = pytest.mark.skipif(not HAVE_TRITON, reason="needs triton: pip install 'gencore[triton]'")


def test_interpreted_kernels(record_property: Callable[[str, object], None]) -> None:
    last = run_pytest(*TESTS, TRITON_INTERPRET="1")
    record_property("process", f"Triton's interpreter, {' '.join(TESTS)}, in a process of its own: {last}")
