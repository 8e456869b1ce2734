"""Oracle of ``batch_norm_act``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gencore.reference.activation import activate


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
