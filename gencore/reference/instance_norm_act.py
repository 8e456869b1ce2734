"""Oracle of ``instance_norm_act``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gencore.reference.activation import activate


def instance_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "identity",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    """Instance norm with weight and bias ``[C]`` or ``[N, C]``, plus the residual, through the activation."""
    per_sample = [v for v in (weight, bias) if v is not None and v.dim() == 2]
    own = (None, None) if per_sample else (weight, bias)
    if not x.numel():
        u = x.clone()  # PyTorch refuses empty batches
    elif x.shape[0] == 1:
        # The same, and right: PyTorch's instance norm misreads the channels_last gradient of a single image.
        u = F.batch_norm(x, None, None, *own, training=True, eps=eps)
    else:
        u = F.instance_norm(x, None, None, *own, eps=eps)
    if per_sample:
        ones = [1] * (x.dim() - 2)
        u = u if weight is None else u * weight.reshape(*weight.shape, *ones)
        u = u if bias is None else u + bias.reshape(*bias.shape, *ones)
        u = u.to(x.dtype)
    return activate(u if residual is None else u + residual, activation, negative_slope)
