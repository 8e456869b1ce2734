"""The activations that gencore's kernels fuse, and their derivatives, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Klambauer, Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks", 2017.
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def activate(
    u: Tensor, activation: str, negative_slope: float = 0.01, slopes: Tensor | None = None, overwrite: bool = False
) -> Tensor:
    """``u`` through an activation by its name in ``gencore/ops/_activation.py``; "prelu" takes ``slopes``.

    ``overwrite``: nobody else reads ``u``, nor does a backward; where the derivative follows from the result alone, it
    may then take the place of ``u``.
    """
    if activation == "relu":
        return F.relu(u, inplace=overwrite)
    if activation == "leaky_relu":
        return F.leaky_relu(u, negative_slope, inplace=overwrite and negative_slope > 0)
    if activation == "tanh":
        return torch.tanh(u)
    if activation == "silu":
        return F.silu(u)
    if activation == "sigmoid":
        return torch.sigmoid(u)
    if activation == "prelu":
        assert slopes is not None
        return F.prelu(u, slopes)
    if activation == "elu":
        return F.elu(u)
    if activation == "selu":
        return F.selu(u)
    if activation == "softplus":
        return F.softplus(u, threshold=40.0)  # beyond, float64 cannot tell it from u
    return u


def activation_derivative(u: Tensor, activation: str, negative_slope: float = 0.01) -> Tensor:
    """The derivative at the pre-activation ``u``; itself differentiable. At u = 0 it is PyTorch's choice."""
    if activation == "relu":
        return torch.where(u <= 0, 0.0, 1.0).to(u.dtype)
    if activation == "leaky_relu":
        # Two numbers alone would make a float32 tensor, and 0.2 another slope than float64's.
        return torch.where(u > 0, u.new_ones(()), u.new_full((), negative_slope))
    if activation == "tanh":
        return 1 - torch.tanh(u).square()
    if activation == "silu":
        s = torch.sigmoid(u)
        return s * (1 + u * (1 - s))
    if activation == "sigmoid":
        s = torch.sigmoid(u)
        return s * (1 - s)
    if activation == "elu":
        return torch.where(u > 0, 1.0, u.clamp(max=0).exp()).to(u.dtype)
    if activation == "selu":
        return SELU_SCALE * torch.where(u > 0, 1.0, SELU_ALPHA * u.clamp(max=0).exp()).to(u.dtype)
    if activation == "softplus":
        return torch.sigmoid(u)
    return torch.ones_like(u)
