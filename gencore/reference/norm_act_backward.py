"""The backward of the norm family: batch norm, conditional batch norm, instance norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gencore.reference.activation import activation_derivative


def norm_act_backward(
    grad_y: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    instance: bool,
    eps: float,
    activation: str,
    negative_slope: float,
    average: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and residual; differentiable, also through the statistics that come from x.

    With xhat = (x - mean) invstd, u = weight xhat + bias + residual, g = grad_y act'(u) and h = weight g:
    grad_x = invstd (h - mean(h) - xhat mean(h xhat)) in training, invstd h in evaluation;
    grad_weight = sum g xhat; grad_bias = sum g; grad_residual = g.

    ``instance``: statistics are those of each image, not of the batch. weight and bias are ``[C]`` or ``[N, C]``.
    ``average``: the mean over all that shares statistics, every dimension kept; None: over x alone.
    """
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    image = list(range(2, x.dim()))
    dims = image if instance else [0, *image]
    affine = next((v for v in (weight, bias) if v is not None), mean)
    affine_dims = image if affine.dim() == 2 else [0, *image]

    def per_channel(v: Tensor) -> Tensor:
        return v.to(compute).reshape(*v.shape[:-1], v.shape[-1], *[1] * len(image))

    def over_x(v: Tensor) -> Tensor:
        return v.mean(dims, keepdim=True)

    average = average or over_x
    xf = x.to(compute)
    if training:
        center = average(xf)
        invstd = (average((xf - center).square()) + eps).rsqrt()
    else:
        center, invstd = per_channel(mean), (per_channel(var) + eps).rsqrt()
    xhat = (xf - center) * invstd
    u = xhat if weight is None else xhat * per_channel(weight)
    u = u if bias is None else u + per_channel(bias)
    u = u if residual is None else u + residual.to(compute)
    g = grad_y.to(compute) * activation_derivative(u, activation, negative_slope)
    h = g if weight is None else g * per_channel(weight)
    grad_x = h
    if training:
        grad_x = h - average(h) - xhat * average(h * xhat)
    grad_x = grad_x * invstd
    # torch.sum takes an empty list of dimensions for all of them; [N, C] with [N, C] has none to sum over.
    grad_weight, grad_bias = ((v.sum(affine_dims) if affine_dims else v) for v in (g * xhat, g))
    return grad_x.to(x.dtype), grad_weight, grad_bias, g.to(x.dtype)
