"""The cases under pytest-benchmark: ``pytest benchmarks``, with its own statistics, comparisons and histograms.

The same tensors, calls and parity gate as ``python -m benchmarks run``; here every contender is timed by itself, so
read the groups for the absolute times and take the ratios from the command line, which measures in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from benchmarks.case import Case, Maker, Problem, all_cases
from benchmarks.parity import Gate
from benchmarks.runner import contenders
from gencore import memory


def _parameters() -> Iterator[Any]:
    for case in all_cases().values():
        for problem in case.problems:
            for layout in problem.layouts or case.layouts:
                for mode in problem.modes or case.modes:
                    marks = () if problem.quick else (pytest.mark.slow,)
                    yield pytest.param(case, problem, layout, mode, marks=marks, id=_name(case, problem, layout, mode))


def _name(case: Case, problem: Problem, layout: str, mode: str) -> str:
    return f"{case.op}-{problem.name}-{layout}-{mode}"


@pytest.fixture(scope="module", autouse=True)
def allocator() -> Iterator[None]:
    """Both sides keep the memory that they have touched, where the caching allocator is built."""
    with memory.caching() if memory.is_available() else nullcontext():
        yield


@pytest.mark.parametrize("side", ["ours", "eager"])
@pytest.mark.parametrize(("case", "problem", "layout", "mode"), _parameters())
def test_op(benchmark: Any, case: Case, problem: Problem, layout: str, mode: str, side: str) -> None:
    make = Maker(torch.float32, torch.device("cpu"), layout, torch.Generator().manual_seed(0))
    inputs = case.inputs(problem, make)
    gate = Gate(case, problem, inputs, [mode], layout)
    field = contenders(case, problem, inputs, gate, impls=("auto",), compiled=False)
    assert field.ours, f"nothing of ours runs: {field.refused_ours}"
    function = field.peers["eager"] if side == "eager" else next(iter(field.ours.values()))
    benchmark.group = _name(case, problem, layout, mode)
    benchmark.pedantic(field.call(function, mode), rounds=10, iterations=1, warmup_rounds=3)
