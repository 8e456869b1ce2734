"""Oracles of ``pixel_norm`` and ``minibatch_stddev``: what progressive GANs put between their convolutions."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_norm(x: Tensor, dim: int, eps: float) -> Tensor:
    """x / sqrt(mean of x^2 over ``dim`` + eps)."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * (wide.square().mean(dim, keepdim=True) + eps).rsqrt()).to(x.dtype)


def minibatch_stddev(x: Tensor, group_size: int, num_channels: int, eps: float = 1e-8) -> Tensor:
    """x [N, C, ...] and ``num_channels`` constant maps: the mean standard deviation within groups of samples.

    Sample n belongs to group n modulo N / group_size; the variance is the biased one.
    """
    n, c, *size = x.shape
    wide = x if x.dtype == torch.float64 else x.float()
    grouped = wide.reshape(group_size, n // group_size, num_channels, c // num_channels, *size)
    variance = (grouped - grouped.mean(0)).square().mean(0)
    maps = (variance + eps).sqrt().flatten(2).mean(2)  # [groups, num_channels]
    maps = maps.repeat(group_size, 1).reshape(n, num_channels, *[1] * len(size)).expand(-1, -1, *size)
    return torch.cat([x, maps.to(x.dtype)], dim=1)
