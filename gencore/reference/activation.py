"""The activations that gencore's kernels fuse, and their derivatives, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def activate(u: Tensor, activation: str, negative_slope: float = 0.01, slopes: Tensor | None = None) -> Tensor:
    """``u`` through "identity", "relu", "leaky_relu", "tanh", "silu", "sigmoid", or "prelu" with ``slopes``."""
    if activation == "relu":
        return F.relu(u)
    if activation == "leaky_relu":
        return F.leaky_relu(u, negative_slope)
    if activation == "tanh":
        return torch.tanh(u)
    if activation == "silu":
        return F.silu(u)
    if activation == "sigmoid":
        return torch.sigmoid(u)
    if activation == "prelu":
        assert slopes is not None
        return F.prelu(u, slopes)
    return u


def activation_derivative(u: Tensor, activation: str, negative_slope: float = 0.01) -> Tensor:
    """The derivative at the pre-activation ``u``; itself differentiable. At u = 0 it is PyTorch's choice."""
    if activation == "relu":
        return torch.where(u <= 0, 0.0, 1.0).to(u.dtype)
    if activation == "leaky_relu":
        return torch.where(u > 0, 1.0, negative_slope).to(u.dtype)
    if activation == "tanh":
        return 1 - torch.tanh(u).square()
    if activation == "silu":
        s = torch.sigmoid(u)
        return s * (1 + u * (1 - s))
    return torch.ones_like(u)
