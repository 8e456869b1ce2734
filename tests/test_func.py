"""``torch.func``: reverse mode at any depth gives ``torch.autograd``'s numbers; forward mode is PyTorch's alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from tests.opspec import OpSpec, Sample, Target, call, cotangents, leaves, prepare


def _loss(spec: OpSpec, target: Target, impl: str = "") -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    sample: Sample = next(
        s for s in spec.samples() if s.smooth and all(x is None or x.numel() > 1 for x in s.tensors.values())
    )
    tensors = prepare(spec, sample, torch.float64, target.device)
    inputs = leaves(spec, tensors)

    def loss(*values: Tensor) -> Tensor:
        fresh = {n: x if x is None or n in inputs else x.clone() for n, x in tensors.items()}
        fresh.update(zip(inputs, values, strict=True))
        outputs = call(spec, fresh, sample.options, sample.seed, impl or target.impl)
        return sum((out * grad).square().sum() for out, grad in zip(outputs, cotangents(outputs), strict=True))

    return loss, tuple(x.detach() for x in inputs.values())


@pytest.mark.float64_only
@pytest.mark.native_only
def test_grad(spec: OpSpec, target: Target) -> None:
    loss, inputs = _loss(spec, target)
    which = tuple(range(len(inputs)))
    found = torch.func.grad(loss, which)(*inputs)
    asked = [x.clone().requires_grad_() for x in inputs]
    for ours, wanted in zip(found, torch.autograd.grad(loss(*asked), asked), strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.float64_only
@pytest.mark.native_only
@pytest.mark.second_order
def test_grad_of_grad(spec: OpSpec, target: Target) -> None:
    loss, inputs = _loss(spec, target)
    which = tuple(range(len(inputs)))

    def penalty(*values: Tensor) -> Tensor:
        return sum(g.square().sum() for g in torch.func.grad(loss, which)(*values))

    found = torch.func.grad(penalty, which)(*inputs)
    asked = [x.clone().requires_grad_() for x in inputs]
    first = torch.autograd.grad(loss(*asked), asked, create_graph=True)
    total = sum(g.square().sum() for g in first)
    for ours, wanted in zip(found, torch.autograd.grad(total, asked), strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.float64_only
@pytest.mark.native_only
def test_forward_mode_is_refused(spec: OpSpec, target: Target) -> None:
    """Rather than a result that has lost its tangent."""
    loss, inputs = _loss(spec, target)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(loss, inputs, inputs)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        loss(*(forward_ad.make_dual(x, x) for x in inputs))


@pytest.mark.float64_only
@pytest.mark.native_only
def test_auto_takes_pytorch_in_forward_mode(spec: OpSpec, target: Target) -> None:
    loss, inputs = _loss(spec, target, "auto")
    tangents = tuple(torch.randn_like(x) for x in inputs)
    _, found = torch.func.jvp(loss, inputs, tangents)
    grads = torch.func.grad(loss, tuple(range(len(inputs))))(*inputs)
    wanted = sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))
    torch.testing.assert_close(found, wanted)
    with forward_ad.dual_level():
        y = loss(*(forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, wanted)
