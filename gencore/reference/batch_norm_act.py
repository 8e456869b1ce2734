"""Oracle of ``batch_norm_act``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gencore.reference.activation import activate, activation_derivative


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "identity",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    """Batch norm, plus the residual, through the activation. Updates the running statistics as PyTorch does."""
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return activate(y if residual is None else y + residual, activation, negative_slope)


def batch_norm_act_backward(
    grad_y: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and residual; differentiable, also through the statistics that come from x.

    With u = (x - mean) invstd weight + bias + residual and g = grad_y act'(u):
    grad_x = weight invstd (g - mean(g) - xhat mean(g xhat)) in training, weight invstd g in evaluation;
    grad_weight = sum g xhat; grad_bias = sum g; grad_residual = g.
    """
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    dims = [d for d in range(x.dim()) if d != 1]

    def per_channel(v: Tensor) -> Tensor:
        return v.to(compute).view(-1, *[1] * (x.dim() - 2))

    xf = x.to(compute)
    if training:
        center = xf.mean(dims, keepdim=True)
        invstd = ((xf - center).square().mean(dims, keepdim=True) + eps).rsqrt()
    else:
        center, invstd = per_channel(mean), (per_channel(var) + eps).rsqrt()
    xhat = (xf - center) * invstd
    u = xhat if weight is None else xhat * per_channel(weight)
    u = u if bias is None else u + per_channel(bias)
    u = u if residual is None else u + residual.to(compute)
    g = grad_y.to(compute) * activation_derivative(u, activation, negative_slope)
    grad_x = g
    if training:
        grad_x = g - g.mean(dims, keepdim=True) - xhat * (g * xhat).mean(dims, keepdim=True)
    grad_x = grad_x * invstd if weight is None else grad_x * invstd * per_channel(weight)
    return grad_x.to(x.dtype), (g * xhat).sum(dims), g.sum(dims), g.to(x.dtype)
