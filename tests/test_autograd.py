"""First, second and third derivatives against finite differences in float64, and the registration of every raw op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from tests.opspec import OpSpec, Sample, Target, call, leaves, prepare

# Finite differences of more elements than this take minutes and show nothing new.
SMALL = 150
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def _function(spec: OpSpec, target: Target, sample: Sample) -> tuple[Any, tuple[Tensor, ...]]:
    tensors = prepare(spec, sample, torch.float64, target.device)
    inputs = leaves(spec, tensors)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        fresh = {n: x if x is None or n in inputs else x.clone() for n, x in tensors.items()}
        fresh.update(zip(inputs, values, strict=True))
        return call(spec, fresh, sample.options, sample.seed, target.impl)

    return function, tuple(inputs.values())


def _small_samples(spec: OpSpec) -> list[Sample]:
    sizes = {s.name: sum(x.numel() for x in s.tensors.values() if x is not None) for s in spec.samples()}
    chosen = [s for s in spec.samples() if s.smooth and 0 < sizes[s.name] <= SMALL]
    assert chosen, f"{spec.name}: no sample is small enough for finite differences"
    return chosen


def _tolerance(target: Target) -> dict[str, Any]:
    # The reference is made of PyTorch's own formulas. What could be wrong, a tensor that is detached on the way, shows
    # along one random direction as it does in every single number.
    return {"rtol": 1e-4, "atol": 1e-6, "fast_mode": target.impl == "reference"}


@pytest.mark.float64_only
def test_gradcheck(spec: OpSpec, target: Target) -> None:
    for sample in _small_samples(spec):
        function, inputs = _function(spec, target, sample)
        assert gradcheck(function, inputs, **_tolerance(target), check_undefined_grad=True), sample.name


@pytest.mark.float64_only
@pytest.mark.second_order
def test_gradgradcheck(spec: OpSpec, target: Target) -> None:
    for sample in _small_samples(spec):
        function, inputs = _function(spec, target, sample)
        assert gradgradcheck(function, inputs, **_tolerance(target)), sample.name


@pytest.mark.float64_only
@pytest.mark.second_order
@pytest.mark.kernels_only
def test_third_derivatives(spec: OpSpec, target: Target) -> None:
    """Of a loss whose gradient at the results depends on them: what the backward is given was itself made from x."""
    for sample in _small_samples(spec):
        function, inputs = _function(spec, target, sample)

        def curvature(*values: Tensor, function: Any = function, keep: bool = True) -> tuple[Tensor, ...]:
            loss = sum(y.square().sum() for y in function(*values) if y.requires_grad)
            grads = torch.autograd.grad(loss, values, create_graph=True, materialize_grads=True)
            size = sum(g.square().sum() for g in grads)
            return torch.autograd.grad(size, values, create_graph=keep, materialize_grads=True)

        torch.testing.assert_close(curvature(*inputs), curvature(*inputs, keep=False), msg=f"{sample.name}: second")
        assert gradcheck(curvature, inputs, rtol=1e-3, atol=1e-5, fast_mode=True), sample.name


class _RawCalls(TorchDispatchMode):
    """Records every call of an op of gencore's own, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "gencore":
            self.calls.append((func, tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)))
        return func(*args, **(kwargs or {}))


@pytest.mark.kernels_only
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.parametrize("element", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_opcheck(spec: OpSpec, target: Target, layout: str, element: torch.dtype) -> None:
    """Schema, fake tensors, autograd registration and AOT dispatch of the forward and of the backward op."""
    seen = set()
    which = ["contiguous", "channels_last", "permuted"].index(layout)
    for i, sample in enumerate(s for s in spec.samples() if s.smooth):
        tensors = prepare(spec, sample, element, target.device, layout)
        inputs = list(leaves(spec, tensors).values())
        with _RawCalls() as recorder:
            outputs = call(spec, tensors, sample.options, sample.seed, target.impl)
            grads = [torch.randn_like(out) for out in outputs]
            torch.autograd.grad(outputs, inputs, grads, allow_unused=True, materialize_grads=True)
        # AOT dispatch takes a hundred times as long as the rest together, and hangs on which tensors are there, not on
        # their dtype: it sees one sample in each layout. (Compiled calls go through it as well, in test_compile.py.)
        checks = CHECKS if i == which and element == torch.float32 else CHECKS[:3]
        for op, arguments in recorder.calls:
            mutated = [a.alias_info is not None and a.alias_info.is_write for a in op._schema.arguments]
            ready = [
                a.requires_grad_() if isinstance(a, Tensor) and a.dtype.is_floating_point and not m else a
                for a, m in zip(arguments, mutated, strict=False)
            ]
            result = torch.library.opcheck(op, tuple(ready), test_utils=checks)
            assert set(result.values()) == {"SUCCESS"}, f"{op}, {sample.name}: {result}"
            seen.add(op)
    assert len(seen) >= spec.raw_ops, f"only {seen} went through the dispatcher: the forward and the backward should"
