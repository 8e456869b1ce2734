"""What ProGAN, StyleGAN and StyleGAN2 share: the resolutions they grow through, the channels at each, and z."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def resolutions(top: int) -> list[int]:
    """[4, 8, ..., top].

    Raises:
        ValueError: if ``top`` is no power of two from 4 to 1024.
    """
    if not isinstance(top, int) or not 4 <= top <= 1024 or top & (top - 1):
        raise ValueError(f"resolution must be a power of two from 4 to 1024, got {top!r}")
    return [1 << i for i in range(2, top.bit_length())]


def check_config(config: Any, *sizes: str) -> None:
    """Refuses a configuration of a network that would have no channels somewhere.

    Raises:
        ValueError: the resolution is none of :func:`resolutions`, one of ``sizes`` is not at least 1, or the budget of
            channels does not reach to the resolution.
    """
    resolutions(config.resolution)
    name = type(config).__name__
    for size in ("channels", "latent", "max_channels", *sizes):
        value = getattr(config, size)
        if not value >= 1:
            raise ValueError(f"{name}: {size} must be at least 1, got {value}")
    if config.channel_budget < config.resolution:
        raise ValueError(
            f"{name}: channel_budget must be at least the resolution {config.resolution}, which would have no "
            f"channel, got {config.channel_budget}"
        )


def width(resolution: int, budget: int, maximum: int) -> int:
    """Channels of the layers at ``resolution``: ``budget / resolution``, at most ``maximum``."""
    return min(budget // resolution, maximum)


def sample_normal(model: nn.Module, count: int, length: int, generator: torch.Generator | None) -> Tensor:
    """``[count, length]`` from N(0, I), on the model's device and in its dtype."""
    weight = next(model.parameters())
    return torch.randn(count, length, dtype=weight.dtype, device=weight.device, generator=generator)
