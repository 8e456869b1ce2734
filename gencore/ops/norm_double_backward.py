"""The gradient of a norm's gradient in two passes, by a C++ kernel: what WGAN-GP and R1 ask of critics with norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gencore.ops._activation import ACTIVATIONS
from gencore.ops._layout import is_channels_last, laid_out, workable
from gencore.ops._library import is_watched


def double_backward(
    cotangents: Sequence[Tensor | None],
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    instance: bool,
    eps: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of grad_y, x and weight, where :func:`has_kernel`; the bias has none.

    Args:
        cotangents: of the backward's grad_x, grad_weight and grad_bias; the last two may be None.
        mean, var: the statistics of x itself.

    The formulas stand in csrc/cpu/batch_norm_act_double_backward.cpp.
    """
    dense = workable(x)
    grad_grad_y, grad_x = torch.empty_like(dense), torch.empty_like(dense)
    affine = affine_like(weight, bias, mean)
    grad_weight = torch.zeros_like(affine)
    torch.ops.gencore_c.batch_norm_act_double_backward.default(
        laid_out(cotangents[0], dense),
        *(None if c is None else c.contiguous() for c in cotangents[1:]),
        laid_out(grad_y, dense),
        dense,
        weight,
        bias,
        mean,
        var,
        affine.dim() == 2,
        instance,
        eps,
        ACTIVATIONS[activation],
        negative_slope,
        is_channels_last(dense),
        grad_grad_y,
        grad_x,
        grad_weight,
    )
    if dense is not x:
        grad_grad_y, grad_x = torch.empty_like(x).copy_(grad_grad_y), torch.empty_like(x).copy_(grad_x)
    return grad_grad_y, grad_x, None if weight is None else grad_weight


def has_kernel(impl: str, activation: str, cotangent: Tensor | None) -> bool:
    """Whether :func:`double_backward` serves a backward that ``impl`` ran: with an activation of two half-lines, whose
    own derivative has none, and where nobody asks for a derivative once more. ``cotangent`` is that of grad_x."""
    return (
        impl == "cpu"
        and activation in ("identity", "relu", "leaky_relu")
        and cotangent is not None
        and not torch.is_grad_enabled()
        and not is_watched()
    )


def affine_like(weight: Tensor | None, bias: Tensor | None, mean: Tensor) -> Tensor:
    """A tensor with the shape of weight and bias, be they there or not."""
    return next((v for v in (weight, bias) if v is not None), mean)
