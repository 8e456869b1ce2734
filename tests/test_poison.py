"""Uninitialised memory holds NaN: that may not show in a result. Autocast is on: that shows where it should."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.opspec import HALF, OpSpec, Target, call, cotangents, leaves, prepare, some_samples


def test_autocast(spec: OpSpec, target: Target) -> None:
    """Ops that autocast lowers compute as from 16-bit input; the others give the same bits with and without it."""
    for dtype in (torch.float32, *HALF[:1]):
        for sample in some_samples(spec, target):
            plain, cast = (prepare(spec, sample, dtype, target.device) for _ in range(2))
            if spec.autocast:
                lowered = {n: x.bfloat16() for n, x in leaves(spec, plain).items()}  # a filter's taps stay as they are
                plain = {**plain, **lowered}
            wanted = call(spec, plain, sample.options, sample.seed, target.impl)
            with torch.autocast(target.device, torch.bfloat16):
                got = call(spec, cast, sample.options, sample.seed, target.impl)
            for a, b in zip(got, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
            inputs = list(leaves(spec, cast).values())
            grads = torch.autograd.grad(got, inputs, cotangents(got), allow_unused=True, materialize_grads=True)
            assert [g.dtype for g in grads] == [x.dtype for x in inputs]


@pytest.fixture
def _poisoned_memory() -> Iterator[None]:
    """``torch.empty`` and its relatives hand out NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all(), "memory is not poisoned: this PyTorch has another switch for it"
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_poisoned_memory")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_every_output_element_is_written(spec: OpSpec, target: Target, layout: str) -> None:
    for sample in some_samples(spec, target):
        tensors = prepare(spec, sample, torch.float32, target.device, layout)
        outputs = call(spec, tensors, sample.options, sample.seed, target.impl)
        inputs = leaves(spec, tensors)
        grads = torch.autograd.grad(
            outputs, list(inputs.values()), cotangents(outputs), allow_unused=True, materialize_grads=True
        )
        for x in (*outputs, *grads):
            assert not x.isnan().any(), f"{sample.name}: NaN where memory was not written"
