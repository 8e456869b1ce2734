"""Every pixel's channels divided by their root mean square, and the gradient.

x is [outer, channels, inner]. A program has a tile of pixels and all of their channels: in registers where they fit, so
that x is read once, else in a loop, and a second time from the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._launch import INT32_LIMIT, lanes, on_device

_WARPS = 8
# Elements of a tile for each thread. Channels that do not fit into a tile are looped over.
_ELEMENTS = 32


def pixel_norm(x: Tensor, outer: int, channels: int, inner: int, eps: float, y: Tensor) -> None:
    """Write x / sqrt(mean of x^2 over the channels + eps). x, y: dense in one order, one dtype."""
    _launch(x, x, outer, channels, inner, eps, y, gradient=False)


def pixel_norm_backward(
    grad_y: Tensor, x: Tensor, outer: int, channels: int, inner: int, eps: float, grad_x: Tensor
) -> None:
    """Write r (grad_y - x r^2 mean(grad_y x)), r = 1 / sqrt(mean(x^2) + eps). All three: as x in the forward."""
    _launch(grad_y, x, outer, channels, inner, eps, grad_x, gradient=True)


def _launch(
    grad_y: Tensor, x: Tensor, outer: int, channels: int, inner: int, eps: float, result: Tensor, gradient: bool
) -> None:
    if x.numel() == 0:
        return
    planar = inner > 1
    pixels = inner if planar else outer
    elements = _WARPS * lanes() * _ELEMENTS
    # Neighbouring pixels of a plane: at least 32 bytes, which is what memory is read in.
    least = 32 // x.element_size() if planar else 1
    tile_channels = min(triton.next_power_of_2(channels), elements // least)
    tile_pixels = min(elements // tile_channels, triton.next_power_of_2(pixels))
    grid = ((outer if planar else 1) * triton.cdiv(pixels, tile_pixels),)
    with on_device(x):
        _normalise[grid](
            grad_y, x, result, channels, pixels, eps, PLANAR=planar, GRADIENT=gradient,
            WHOLE=tile_channels >= channels, CHANNELS=tile_channels, PIXELS=tile_pixels,
            LONG=x.numel() >= INT32_LIMIT, num_warps=_WARPS,
        )  # fmt: skip


# grad_y, x, result: [outer, channels, pixels] where PLANAR, else [pixels, channels]. WHOLE: one tile has all channels.
@triton.jit
def _normalise(
    grad_y, x, result, channels, pixels, eps,
    PLANAR: tl.constexpr, GRADIENT: tl.constexpr, WHOLE: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64) if LONG else tl.program_id(0)
    tiles = tl.cdiv(pixels, PIXELS)
    sample, first = program // tiles, program % tiles * PIXELS
    if WHOLE:
        offset, mask = _element(sample, 0, first, channels, pixels, PLANAR, CHANNELS, PIXELS)
        value, g = _load(grad_y, x, offset, mask, GRADIENT)
        r, projection = _factors(
            _sum(value * value, PLANAR), _sum(value * g, PLANAR) if GRADIENT else 0.0, channels, eps
        )
        _store(result, offset, mask, value, g, r, projection, GRADIENT)
    else:
        squares = tl.zeros([CHANNELS, PIXELS] if PLANAR else [PIXELS, CHANNELS], tl.float32)
        products = squares
        for start in range(0, channels, CHANNELS):
            offset, mask = _element(sample, start, first, channels, pixels, PLANAR, CHANNELS, PIXELS)
            value, g = _load(grad_y, x, offset, mask, GRADIENT)
            squares += value * value
            if GRADIENT:
                products += value * g
        r, projection = _factors(_sum(squares, PLANAR), _sum(products, PLANAR) if GRADIENT else 0.0, channels, eps)
        for start in range(0, channels, CHANNELS):
            offset, mask = _element(sample, start, first, channels, pixels, PLANAR, CHANNELS, PIXELS)
            value, g = _load(grad_y, x, offset, mask, GRADIENT)
            _store(result, offset, mask, value, g, r, projection, GRADIENT)


@triton.jit
def _element(
    sample, start, first, channels, pixels, PLANAR: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr
):
    """Offsets and mask of a tile, [CHANNELS, PIXELS] where PLANAR, else [PIXELS, CHANNELS]."""
    channel, pixel = start + tl.arange(0, CHANNELS), first + tl.arange(0, PIXELS)
    if PLANAR:
        offset = (sample * channels + channel[:, None]) * pixels + pixel[None, :]
        mask = (channel < channels)[:, None] & (pixel < pixels)[None, :]
    else:
        offset = pixel[:, None] * channels + channel[None, :]
        mask = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    return offset, mask


@triton.jit
def _load(grad_y, x, offset, mask, GRADIENT: tl.constexpr):
    """x and grad_y (or x again), zero where the mask is false."""
    value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad_y + offset, mask=mask, other=0.0).to(tl.float32) if GRADIENT else value
    return value, g


@triton.jit
def _sum(tile, PLANAR: tl.constexpr):
    """Over the channels of a tile."""
    return tl.sum(tile, 0, keep_dims=True) if PLANAR else tl.sum(tile, 1, keep_dims=True)


@triton.jit
def _factors(squares, products, channels, eps):
    """r and r^2 mean(grad_y x)."""
    variance = squares / channels + eps
    return 1.0 / tl.sqrt_rn(variance), products / channels / variance


@triton.jit
def _store(result, offset, mask, value, g, r, projection, GRADIENT: tl.constexpr):
    v = (g - value * projection) * r if GRADIENT else value * r
    tl.store(result + offset, v.to(result.dtype.element_ty), mask=mask)
