"""Scale, noise, bias, activation, gain and clamp in one pass; all of their gradients in another.

x is [batch, channels, pixels] (planar), or [batch, pixels, channels] (channels_last, and [N, C]). Sums over pixels take
two stages: parts of a sample's pixels, then the parts. Sums over channels, for the noise, have a pass of their own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import ENOUGH_PROGRAMS, INT32_LIMIT, lanes, on_device
from ._math import activate, activation_derivative

_WARPS = 4
_MOST_PARTS = 64


def bias_act(
    x: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    activation: int,
    alpha: float,
    gain: float,
    clamp: float,
    channels_last: bool,
    y: Tensor,
) -> None:
    """Write clamp(gain act(x scale + noise + b)).

    Args:
        x, y: dense, one dtype. scale: ``[batch, channels]``, noise: ``[batch or 1, pixels]``, b: ``[channels]``,
            float32 or None.
        activation: its number in ``gencore/ops/_activation.py``. clamp: negative for none.
    """
    if x.numel() == 0:
        return
    view = _View.of(x, batch, channels, pixels, channels_last)
    rows, cols = view.matrix
    elements = _WARPS * lanes() * 2 * (16 // x.element_size())
    tile_cols = min(elements, triton.next_power_of_2(cols))
    tile_rows = min(elements // tile_cols, triton.next_power_of_2(rows))
    grid = (triton.cdiv(rows, tile_rows) * triton.cdiv(cols, tile_cols),)
    with on_device(x):
        _forward[grid](
            x, scale, noise, b, y, rows, cols, channels, pixels, view.noise_stride(noise), alpha, gain, clamp,
            PLANAR=view.planar, ACTIVATION=activation, CLAMPED=clamp >= 0, ROWS=tile_rows, COLS=tile_cols,
            LONG=view.long, num_warps=_WARPS,
        )  # fmt: skip


def bias_act_backward(
    grad_y: Tensor,
    x: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    activation: int,
    alpha: float,
    gain: float,
    clamp: float,
    channels_last: bool,
    grad_x: Tensor,
    grad_scale: Tensor | None,
    grad_noise: Tensor | None,
    grad_b: Tensor | None,
) -> None:
    """Write the gradients, from x alone: the pre-activation is worked out anew.

    Args:
        grad_y, x, grad_x: as x in the forward. grad_scale, grad_b: like scale and b. grad_noise: ``[batch, pixels]``.
    """
    if x.numel() == 0:
        return
    view = _View.of(x, batch, channels, pixels, channels_last)
    config = {"PLANAR": view.planar, "ACTIVATION": activation, "CLAMPED": clamp >= 0, "LONG": view.long}
    sizes = (channels, pixels, view.noise_stride(noise), alpha, gain, clamp)
    elements = _WARPS * lanes() * 8
    contiguous = pixels if view.planar else channels
    inner = min(elements if view.planar else 64, triton.next_power_of_2(contiguous))
    outer = min(elements // inner, triton.next_power_of_2(channels if view.planar else pixels))
    tile = {"CHANNELS": outer if view.planar else inner, "PIXELS": inner if view.planar else outer}
    groups, tiles = triton.cdiv(channels, tile["CHANNELS"]), triton.cdiv(pixels, tile["PIXELS"])
    parts = min(tiles, _MOST_PARTS, triton.cdiv(ENOUGH_PROGRAMS, batch * groups))
    per_part = triton.cdiv(tiles, parts)
    parts = triton.cdiv(tiles, per_part)
    partial = torch.empty((2, batch, parts, channels), dtype=torch.float32, device=x.device)
    with on_device(x):
        _backward[(batch * groups * parts,)](
            grad_y, x, scale, noise, b, grad_x, partial, batch, groups, parts, tiles, per_part, *sizes,
            **config, **tile, num_warps=_WARPS,
        )  # fmt: skip
        block = 32
        if grad_scale is not None:
            _finish_scale[(batch * triton.cdiv(channels, block),)](
                partial, grad_scale, batch, channels, parts, BLOCK=block, num_warps=_WARPS
            )
        if grad_b is not None:
            _finish_bias[(triton.cdiv(channels, block),)](
                partial, grad_b, batch * parts, channels, BLOCK=block, num_warps=_WARPS
            )
        if grad_noise is not None:
            _sum_channels[(batch * tiles,)](
                grad_y, x, scale, noise, b, grad_noise, tiles, groups, *sizes, **config, **tile, num_warps=_WARPS
            )


class _View(NamedTuple):
    """x as a matrix: [batch channels, pixels] where planar, else [batch pixels, channels]."""

    batch: int
    channels: int
    pixels: int
    planar: bool
    long: bool

    @classmethod
    def of(cls, x: Tensor, batch: int, channels: int, pixels: int, channels_last: bool) -> _View:
        return cls(batch, channels, pixels, not channels_last, x.numel() >= INT32_LIMIT)

    @property
    def matrix(self) -> tuple[int, int]:
        n, c, p = self.batch, self.channels, self.pixels
        return (n * c, p) if self.planar else (n * p, c)

    def noise_stride(self, noise: Tensor | None) -> int:
        return 0 if noise is None or noise.numel() == self.pixels else self.pixels


# x, y: [rows, cols]. scale: [batch, channels], noise: [batch or 1, pixels], b: [channels], float32.
@triton.jit
def _forward(
    x, scale, noise, b, y, rows, cols, channels, pixels, noise_stride, alpha, gain, clamp,
    PLANAR: tl.constexpr, ACTIVATION: tl.constexpr, CLAMPED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64) if LONG else tl.program_id(0)
    col_tiles = tl.cdiv(cols, COLS)
    row = (program // col_tiles * ROWS + tl.arange(0, ROWS))[:, None]
    col = (program % col_tiles * COLS + tl.arange(0, COLS))[None, :]
    mask = (row < rows) & (col < cols)
    if PLANAR:
        sample, channel, pixel = row // channels, row % channels, col
        channel_mask, pixel_mask = row < rows, mask
    else:
        sample, channel, pixel = row // pixels, col, row % pixels
        channel_mask, pixel_mask = mask, row < rows
    offset = row * cols + col
    u = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    u = _pre_activation(u, scale, noise, b, sample, channel, pixel, channel_mask, pixel_mask, channels, noise_stride)
    v = activate(u, alpha, ACTIVATION) * gain
    if CLAMPED:
        v = tl.where(v > clamp, clamp, tl.where(v < -clamp, -clamp, v))
    tl.store(y + offset, v.to(y.dtype.element_ty), mask=mask)


# grad_y, x, grad_x as x above. partial: [2, batch, parts, channels] float32: sums of g and of g x over pixels.
@triton.jit
def _backward(
    grad_y, x, scale, noise, b, grad_x, partial, batch, groups, parts, tiles, tiles_per_part,
    channels, pixels, noise_stride, alpha, gain, clamp,
    PLANAR: tl.constexpr, ACTIVATION: tl.constexpr, CLAMPED: tl.constexpr, LONG: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    part, group, sample = program % parts, program // parts % groups, program // (parts * groups)
    channel = (group * CHANNELS + tl.arange(0, CHANNELS))[:, None]
    sum_g = tl.zeros([CHANNELS, PIXELS], tl.float32)
    sum_gx = tl.zeros([CHANNELS, PIXELS], tl.float32)
    for tile in range(part * tiles_per_part, tl.minimum((part + 1) * tiles_per_part, tiles)):
        pixel = (tile * PIXELS + tl.arange(0, PIXELS))[None, :]
        offset, mask = _element(sample, channel, pixel, channels, pixels, PLANAR, LONG)
        value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
        g = _gradient(
            grad_y, value, scale, noise, b, offset, mask, sample, channel, pixel, channels, pixels, noise_stride,
            alpha, gain, clamp, ACTIVATION, CLAMPED,
        )  # fmt: skip
        sum_g += g
        sum_gx += g * value
        if scale is not None:
            g *= tl.load(scale + sample * channels + channel, mask=channel < channels, other=0.0)
        tl.store(grad_x + offset, g.to(grad_x.dtype.element_ty), mask=mask)
    where = partial + (sample * parts + part) * channels + group * CHANNELS + tl.arange(0, CHANNELS)
    inside = group * CHANNELS + tl.arange(0, CHANNELS) < channels
    tl.store(where, tl.sum(sum_g, 1), mask=inside)
    tl.store(where + batch * parts * channels, tl.sum(sum_gx, 1), mask=inside)


# partial as above; grad_scale: [batch, channels].
@triton.jit
def _finish_scale(partial, grad_scale, batch, channels, parts, BLOCK: tl.constexpr):
    blocks = tl.cdiv(channels, BLOCK)
    sample, channel = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(parts):
        row = (batch + sample) * parts + part
        total += tl.load(partial + row * channels + channel, mask=channel < channels, other=0.0)
    tl.store(grad_scale + sample * channels + channel, total, mask=channel < channels)


# partial: [rows, channels] are its sums of g; grad_b: [channels].
@triton.jit
def _finish_bias(partial, grad_b, rows, channels, BLOCK: tl.constexpr):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for row in range(rows):
        total += tl.load(partial + row * channels + channel, mask=channel < channels, other=0.0)
    tl.store(grad_b + channel, total, mask=channel < channels)


# grad_noise: [batch, pixels] float32; the others as in _backward.
@triton.jit
def _sum_channels(
    grad_y, x, scale, noise, b, grad_noise, tiles, groups,
    channels, pixels, noise_stride, alpha, gain, clamp,
    PLANAR: tl.constexpr, ACTIVATION: tl.constexpr, CLAMPED: tl.constexpr, LONG: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    sample, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    pixel = (tile * PIXELS + tl.arange(0, PIXELS))[None, :]
    total = tl.zeros([CHANNELS, PIXELS], tl.float32)
    for group in range(groups):
        channel = (group * CHANNELS + tl.arange(0, CHANNELS))[:, None]
        offset, mask = _element(sample, channel, pixel, channels, pixels, PLANAR, LONG)
        value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
        total += _gradient(
            grad_y, value, scale, noise, b, offset, mask, sample, channel, pixel, channels, pixels, noise_stride,
            alpha, gain, clamp, ACTIVATION, CLAMPED,
        )  # fmt: skip
    line = tile * PIXELS + tl.arange(0, PIXELS)
    tl.store(grad_noise + sample * pixels + line, tl.sum(total, 0), mask=line < pixels)


@triton.jit
def _element(sample, channel, pixel, channels, pixels, PLANAR: tl.constexpr, LONG: tl.constexpr):
    """Offsets and mask of a tile [channels, pixels]."""
    mask = (channel < channels) & (pixel < pixels)
    if LONG:
        sample, channel, pixel = sample.to(tl.int64), channel.to(tl.int64), pixel.to(tl.int64)
    if PLANAR:
        offset = (sample * channels + channel) * pixels + pixel
    else:
        offset = (sample * pixels + pixel) * channels + channel
    return offset, mask


@triton.jit
def _gradient(
    grad_y, value, scale, noise, b, offset, mask, sample, channel, pixel, channels, pixels, noise_stride,
    alpha, gain, clamp, ACTIVATION: tl.constexpr, CLAMPED: tl.constexpr,
):  # fmt: skip
    """The gradient before the activation; 0 where the mask is false."""
    u = _pre_activation(
        value, scale, noise, b, sample, channel, pixel, channel < channels, pixel < pixels, channels, noise_stride
    )
    g = tl.load(grad_y + offset, mask=mask, other=0.0).to(tl.float32)
    g *= activation_derivative(u, alpha, ACTIVATION) * gain
    if CLAMPED:
        v = activate(u, alpha, ACTIVATION) * gain
        g = tl.where((v > clamp) | (v < -clamp), 0.0, g)
    return g


@triton.jit
def _pre_activation(u, scale, noise, b, sample, channel, pixel, channel_mask, pixel_mask, channels, noise_stride):
    if scale is not None:
        u *= tl.load(scale + sample * channels + channel, mask=channel_mask, other=0.0)
    if noise is not None:
        u += tl.load(noise + sample * noise_stride + pixel, mask=pixel_mask, other=0.0)
    if b is not None:
        u += tl.load(b + channel, mask=channel_mask, other=0.0)
    return u
