"""``torch.func``: reverse mode at any depth gives ``torch.autograd``'s numbers; forward mode is PyTorch's alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from tests.opspec import OpSpec, Sample, Target, call, cotangents, leaves, prepare


def _loss(
    spec: OpSpec, target: Target, impl: str = "", pure: bool = False
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """``pure``: of a sample whose call changes nothing."""
    sample: Sample = next(
        s
        for s in spec.samples()
        if s.smooth
        and all(x is None or x.numel() > 1 for x in s.tensors.values())
        and not (pure and s.tensors.get("running_mean") is not None)
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


# Lists of tensors have no batching rule in PyTorch, and it says so.
NO_RULE = ("spectral_norm", "spectral_norm_list")


@pytest.mark.float64_only
@pytest.mark.native_only
@pytest.mark.second_order
def test_batched_gradients(spec: OpSpec, target: Target) -> None:
    """``is_grads_batched``, by which ``torch.autograd.functional.jacobian(vectorize=True)`` works."""
    loss, inputs = _loss(spec, target)
    asked = [x.clone().requires_grad_() for x in inputs]
    value = loss(*asked)
    cotangents_of_loss = torch.tensor([1.0, 2.0], dtype=value.dtype)
    options = {"is_grads_batched": True, "create_graph": True}
    if spec.name in NO_RULE:
        with pytest.raises(RuntimeError, match="Batching rule not implemented"):
            torch.autograd.grad(value, asked, cotangents_of_loss, **options)
        return
    first = torch.autograd.grad(value, asked, create_graph=True)
    for ours, wanted in zip(torch.autograd.grad(value, asked, cotangents_of_loss, **options), first, strict=True):
        torch.testing.assert_close(ours, torch.stack((wanted, 2 * wanted)))
    for grad in first:
        many = torch.randn((3, *grad.shape), dtype=grad.dtype)
        options = {"retain_graph": True, "materialize_grads": True}
        found = torch.autograd.grad(grad, asked, many, is_grads_batched=True, **options)
        for i in range(3):
            for ours, wanted in zip(found, torch.autograd.grad(grad, asked, many[i], **options), strict=True):
                torch.testing.assert_close(ours[i], wanted)


@pytest.mark.float64_only
@pytest.mark.native_only
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap(spec: OpSpec, target: Target) -> None:
    """Gradients of each sample on its own."""
    loss, inputs = _loss(spec, target, pure=True)
    many = tuple(torch.stack((x, x * 1.25, x - 0.25)) for x in inputs)
    each = torch.func.vmap(torch.func.grad(loss), randomness="same")
    if spec.name in NO_RULE:
        with pytest.raises(RuntimeError, match="Batching rule not implemented"):
            each(*many)
        return
    found = each(*many)
    for i in range(3):
        torch.testing.assert_close(found[i], torch.func.grad(loss)(*(x[i] for x in many)))
