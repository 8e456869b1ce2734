"""Noise images, drawn and added (StyleGAN; Karras, Laine and Aila, 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gencore.ops._checks import check_tensor


def standard_normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """``torch.randn`` in dtype and device of ``like``; exporters know the overload without a generator alone."""
    if generator is None:
        return torch.randn(shape, device=like.device, dtype=like.dtype)
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


class NoiseInjection(nn.Module):
    """``x + weight_c noise``, one noise image for all channels, one learned weight each (StyleGAN); 0 at first.

    Args:
        channels: of x.
    """

    def __init__(self, channels: int, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, x: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """``noise``: ``[N or 1, 1, H, W]`` or ``[H, W]``; None: standard normal, drawn by ``generator``.

        Raises:
            TypeError: the noise is no tensor.
            RuntimeError: x has another number of channels, or the noise another shape.
        """
        channels = self.weight.numel()
        if x.dim() != 4 or x.shape[1] != channels:
            raise RuntimeError(f"NoiseInjection: x must have shape [N, {channels}, H, W], got {tuple(x.shape)}")
        if noise is None:
            noise = standard_normal((x.shape[0], 1, *x.shape[2:]), x, generator)
        check_tensor("NoiseInjection", "noise", noise)
        n, _, h, w = x.shape
        noise = noise[None, None] if noise.dim() == 2 else noise
        if noise.shape[1:] != (1, h, w) or (noise.shape[0] != n and noise.shape[0] != 1):
            raise RuntimeError(
                f"NoiseInjection: noise must have shape [{n} or 1, 1, {h}, {w}] or [{h}, {w}], got {tuple(noise.shape)}"
            )
        return torch.addcmul(x, noise.to(x.dtype), self.weight[:, None, None].to(x.dtype))

    def extra_repr(self) -> str:
        return str(self.weight.numel())
