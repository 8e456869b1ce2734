"""Layers that double the pixels before a convolution, or average them after it: one convolution at a stride of 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import gencore.functional as F
from gencore.nn.conv import Conv2d
from gencore.nn.stylegan import EqualizedConv2d


class _Rescaled(Conv2d):
    """Arguments and ``state_dict`` of a ``torch.nn.Conv2d`` that keeps the size; what it does on the way is its own."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, **options: Any) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"{type(self).__name__}: kernel_size must be odd, got {kernel_size}")
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, **options)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        weight, epilogue = self._weighted(self._epilogue())
        return self._function(input, weight, self.bias, residual=residual, **epilogue)


class UpscaleConv2d(_Rescaled):
    """:func:`gencore.functional.upscale2d_conv2d` as a layer: pixels doubled, then a convolution.

    Args:
        in_channels, out_channels: of the convolution.
        kernel_size: odd.
        options: ``bias``, ``device`` and ``dtype`` of ``torch.nn.Conv2d``; ``activation``, ``negative_slope`` and
            ``impl`` of :class:`Conv2d`.

    Raises:
        ValueError: an even kernel, an unknown activation.
    """

    @property
    def _function(self) -> Callable[..., Tensor]:
        return F.upscale2d_conv2d


class ConvDownscale2d(_Rescaled):
    """:func:`gencore.functional.conv2d_downscale2d` as a layer: a convolution, then the mean over 2x2 pixels; arguments
    of :class:`UpscaleConv2d`."""

    @property
    def _function(self) -> Callable[..., Tensor]:
        return F.conv2d_downscale2d


class UpscaleEqualizedConv2d(EqualizedConv2d):
    """An :class:`EqualizedConv2d` of doubled pixels; ``up``, ``down`` and ``padding`` are not to be given."""

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.upscale2d_conv2d(x, weight, impl=self.impl)


class EqualizedConvDownscale2d(EqualizedConv2d):
    """The mean over 2x2 pixels of an :class:`EqualizedConv2d`, before its bias and activation."""

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d_downscale2d(x, weight, impl=self.impl)
