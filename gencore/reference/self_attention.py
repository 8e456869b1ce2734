"""Oracle of ``self_attention`` and ``attention_block``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gencore.reference._precision import without_autocast


@without_autocast
def self_attention(query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0) -> Tensor:
    """softmax(scale Q K^T) V, the softmax over the keys."""
    return (attention_weights(query, key, scale) @ value.to(_compute(value))).to(query.dtype)


@without_autocast
def self_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; differentiable.

    With P = softmax(scale Q K^T), D = dO V^T and S' = P (D - rowsum(P D)):
    dQ = scale S' K, dK = scale S'^T Q, dV = P^T dO.
    """
    compute = _compute(query)
    weights, g = attention_weights(query, key, scale), grad.to(compute)
    grad_weights = g @ value.to(compute).mT
    grad_scores = scale * weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
    grad_query, grad_key = grad_scores @ key.to(compute), grad_scores.mT @ query.to(compute)
    return grad_query.to(query.dtype), grad_key.to(key.dtype), (weights.mT @ g).to(value.dtype)


@without_autocast
def attention_block(
    x: Tensor,
    w_query: Tensor,
    w_key: Tensor,
    w_value: Tensor,
    w_out: Tensor,
    gamma: Tensor,
    pool: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """gamma w_out(attention(w_query x, w_key x, w_value x)) + x, keys and values max-pooled 2x2 if ``pool``."""
    key, value = project(x, w_key), project(x, w_value)
    if pool:
        key, value = F.max_pool2d(key, 2), F.max_pool2d(value, 2)
    query = project(x, w_query)
    o = self_attention(query.flatten(2).mT, key.flatten(2).mT, value.flatten(2).mT, scale)
    o = o.mT.reshape(x.shape[0], w_value.shape[0], *x.shape[2:])
    return torch.addcmul(x, project(o, w_out), gamma)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution with ``[O, I]`` or ``[O, I, 1, 1]``."""
    return F.conv2d(x, weight.reshape(*weight.shape[:2], 1, 1))


def attention_weights(query: Tensor, key: Tensor, scale: float = 1.0) -> Tensor:
    """softmax(scale Q K^T) over the keys, in float32 (float64 for float64)."""
    compute = _compute(query)
    scores = query.to(compute) @ key.to(compute).mT
    return torch.softmax(scores if scale == 1.0 else scale * scores, -1)


def _compute(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
