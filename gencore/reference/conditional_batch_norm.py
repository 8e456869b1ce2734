"""Oracle of ``conditional_batch_norm``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gencore.reference.activation import activate


def conditional_batch_norm(
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Tensor:
    """Batch norm, times the sample's gain, plus its bias, through the activation. Updates the running statistics."""
    xhat = F.batch_norm(x, running_mean, running_var, None, None, training, momentum, eps)
    ones = [1] * (x.dim() - 2)
    u = gain.reshape(*gain.shape, *ones) * xhat + bias.reshape(*bias.shape, *ones)
    return activate(u.to(x.dtype), activation, negative_slope)
