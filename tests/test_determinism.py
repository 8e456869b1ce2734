"""Same inputs, same bits: run to run, at each thread count; addresses past 2^31 elements; bad input."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.opspec import ErrorInput, OpSpec, Sample, Target, call, cotangents, leaves, prepare, some_samples


@pytest.fixture
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _everything(spec: OpSpec, target: Target, sample: Sample) -> list[Tensor]:
    tensors = prepare(spec, sample, torch.float32, target.device)
    outputs = call(spec, tensors, sample.options, sample.seed, target.impl)
    inputs = list(leaves(spec, tensors).values())
    grads = torch.autograd.grad(outputs, inputs, cotangents(outputs), allow_unused=True, materialize_grads=True)
    return [*outputs, *grads, *(x for n in spec.buffers if (x := tensors[n]) is not None)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return bool(((a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())).all())


def _big(sample: Sample, spec: OpSpec) -> Sample:
    """Enough rows that every thread gets some."""
    first = sample.tensors[spec.layout[0]]
    assert first is not None
    copies = max(2, min(64, 2**20 // first.numel()))
    tensors = {
        n: torch.cat([x] * copies)
        * torch.linspace(0.5, 1.5, copies * x.shape[0], dtype=x.dtype).view(-1, *[1] * (x.dim() - 1))
        if n in (*spec.layout, *sample.batch) and x is not None
        else x
        for n, x in sample.tensors.items()
    }
    return Sample(sample.name, tensors, sample.options, sample.seed)


@pytest.mark.usefixtures("_restore_threads")
def test_same_bits(spec: OpSpec, target: Target) -> None:
    for sample in some_samples(spec, target)[: 1 if target.impl == "reference" else None]:  # PyTorch's own code
        if not target.interpreted and sample.tensors[spec.layout[0]].numel() > 0:  # type: ignore[union-attr]
            sample = _big(sample, spec)
        first = None
        for threads in (1,) if target.interpreted else (1, 2, 3):
            torch.set_num_threads(threads)
            runs = [_everything(spec, target, sample) for _ in range(3)]
            for run in runs[1:]:
                for a, b in zip(run, runs[0], strict=True):
                    assert same_bits(a, b), f"{sample.name}: other bits in another run with {threads} threads"
            if target.impl == "cpu" and spec.same_bits_at_any_thread_count:
                first = first or runs[0]
                for a, b in zip(runs[0], first, strict=True):
                    assert same_bits(a, b), f"{sample.name}: other bits with {threads} threads than with one"


@pytest.mark.slow
@pytest.mark.native_only
def test_more_than_2_to_the_31_elements(spec: OpSpec, target: Target) -> None:
    if spec.large is None:
        pytest.skip("this op has no tensor of that size")
    free = torch.cuda.mem_get_info()[0] if target.device == "cuda" else _free_memory()
    if free < spec.large_bytes:
        pytest.skip(f"needs {spec.large_bytes / 2**30:.0f} GiB of free memory, there are {free / 2**30:.0f}")
    spec.large(target.device, target.impl)


def _free_memory() -> int:
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def test_bad_input_is_refused_as_pytorch_refuses_it(spec: OpSpec, target: Target) -> None:
    cases = spec.errors()
    assert cases, "an op without bad input has not been thought about"
    for case in cases:
        _check_refusal(case, target.impl)


def _check_refusal(case: ErrorInput, impl: str) -> None:
    try:
        case.torch_call()
    except Exception as error:
        wanted = type(error)
    else:
        raise AssertionError(f"{case.name}: PyTorch accepts this; it is no bad input")
    with pytest.raises(Exception, match=case.message) as caught:
        case.call(impl)
    # NotImplementedError and the like are RuntimeErrors; what matters is that the same `except` clause catches both.
    assert issubclass(wanted, caught.type) or issubclass(caught.type, wanted), (
        f"{case.name}: {caught.type.__name__}, PyTorch raises {wanted.__name__}"
    )
