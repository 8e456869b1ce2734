"""Oracles of ``pixel_norm`` and ``minibatch_stddev``: what progressive GANs put between their convolutions."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_norm(x: Tensor, dim: int, eps: float) -> Tensor:
    """x / sqrt(mean of x^2 over ``dim`` + eps)."""
    wide = _wide(x)
    return (wide * (wide.square().mean(dim, keepdim=True) + eps).rsqrt()).to(x.dtype)


def pixel_norm_backward(grad_y: Tensor, x: Tensor, dim: int, eps: float) -> Tensor:
    """r (grad_y - x r^2 mean(grad_y x)) with r = 1 / sqrt(mean(x^2) + eps): can itself be differentiated."""
    g, wide = _wide(grad_y), _wide(x)
    r = (wide.square().mean(dim, keepdim=True) + eps).rsqrt()
    return (r * (g - wide * (r.square() * (g * wide).mean(dim, keepdim=True)))).to(x.dtype)


def minibatch_stddev(x: Tensor, group_size: int, num_channels: int, eps: float) -> Tensor:
    """x [N, C, ...] and ``num_channels`` constant maps: the mean standard deviation within groups of samples.

    Sample n belongs to group n modulo N / group_size; the variance is the biased one.
    """
    n, _, *size = x.shape
    _, stddev = _deviations(x, group_size, num_channels, eps)
    maps = stddev.flatten(2).mean(2)  # [groups, num_channels]
    maps = maps.repeat(group_size, 1).reshape(n, num_channels, *[1] * len(size)).expand(-1, -1, *size)
    return torch.cat([x, maps.to(x.dtype)], dim=1)


def minibatch_stddev_backward(grad_y: Tensor, x: Tensor, group_size: int, num_channels: int, eps: float) -> Tensor:
    """grad_y's first channels and, from its maps, share * deviation / stddev; a formula that can be differentiated."""
    channels = x.shape[1]
    deviations, stddev = _deviations(x, group_size, num_channels, eps)
    deviations = deviations - deviations.mean(0)  # of samples that nearly agree: what rounding the mean has left
    maps = _wide(grad_y[:, channels:]).reshape(*deviations.shape[:3], -1).sum((0, 3))  # [groups, num_channels]
    share = maps / max(deviations[:, 0, 0].numel(), 1)  # of each element whose deviation is in the mean
    by_maps = deviations / stddev * share.reshape(*share.shape, *[1] * (deviations.dim() - 3))
    return (_wide(grad_y[:, :channels]) + by_maps.reshape(x.shape)).to(x.dtype)


def _deviations(x: Tensor, group_size: int, num_channels: int, eps: float) -> tuple[Tensor, Tensor]:
    """From the group's mean, [group_size, groups, num_channels, C / num_channels, ...], and their root mean square."""
    n, c, *size = x.shape
    grouped = _wide(x).reshape(group_size, n // group_size, num_channels, c // num_channels, *size)
    deviations = grouped - grouped.mean(0)
    return deviations, (deviations.square().mean(0) + eps).sqrt()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
