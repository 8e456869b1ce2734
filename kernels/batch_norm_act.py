"""Batch normalisation with a fused activation and residual: split reductions, then one elementwise pass.

Memory is seen in one of two ways. *Planar* (contiguous N, C, H, W): rows are the N C planes, columns the positions, and
a row belongs to channel ``row % C``. *By rows* (channels_last, and [N, C]): columns are the channels. A reduction gives
each channel, or each tile of channels, to many programs; their partial results, [parts, C], are merged by a second
kernel in a fixed order. Everything inside is float32, whatever the tensors are.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ._launch import ENOUGH_PROGRAMS, INT32_LIMIT, lanes, on_device
from ._math import activate, activation_derivative

_WARPS = 4
_MOST_PARTS = 128


def batch_norm_act(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    activation: int,
    negative_slope: float,
    channels_last: bool,
    y: Tensor,
) -> None:
    """Write y = act((x - mean) / sqrt(var + eps) weight + bias + residual); in training also mean and var of the batch.

    Args:
        x, residual, y: ``[N, C, ...]``, one dtype and one dense layout: contiguous or ``channels_last``.
        weight, bias: ``[C]`` float32 or None. mean, var: ``[C]`` float32; written if ``training``, var being biased.
        activation: its number in ``gencore.ops._activation``.
    """
    if x.numel() == 0:
        return
    view = _View.of(x, channels_last)
    with on_device(x):
        if training:
            split = _Split.of(view, x.element_size())
            partial = mean.new_empty((3, split.parts, view.channels))
            _statistics[(split.groups * split.parts,)](
                x, partial, *view.sizes, split.groups, split.parts, split.tiles, split.tiles_per_part,
                PLANAR=view.planar, ROWS=split.rows, COLS=split.cols, LONG=view.long, num_warps=_WARPS,
            )  # fmt: skip
            _finish_statistics[(triton.cdiv(view.channels, 32),)](
                partial, mean, var, split.parts, view.channels,
                PARTS=triton.next_power_of_2(split.parts), BLOCK=32, num_warps=_WARPS,
            )  # fmt: skip
        grid, tile = _tiling(view, x.element_size())
        _normalize[grid](
            x, residual, weight, bias, mean, var, y, *view.matrix, view.channels, float(eps), float(negative_slope),
            PLANAR=view.planar, ACTIVATION=activation, LONG=view.long, num_warps=_WARPS, **tile,
        )  # fmt: skip


def batch_norm_act_backward(
    grad_y: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    activation: int,
    negative_slope: float,
    channels_last: bool,
    grad_x: Tensor,
    grad_residual: Tensor | None,
    grad_weight: Tensor,
    grad_bias: Tensor,
) -> None:
    """Write the gradients, from x and the statistics alone; the activation's is worked out anew in both passes.

    Args:
        grad_y, x, residual, grad_x, grad_residual: as x in the forward; ``grad_residual`` None where nobody wants it.
        weight, bias: ``[C]`` float32 or None. mean, var, grad_weight, grad_bias: ``[C]`` float32.
    """
    if x.numel() == 0:
        return
    view = _View.of(x, channels_last)
    eps, negative_slope = float(eps), float(negative_slope)
    with on_device(x):
        split = _Split.of(view, x.element_size())
        partial = mean.new_empty((2, split.parts, view.channels))
        _backward_sums[(split.groups * split.parts,)](
            grad_y, x, residual, weight, bias, mean, var, partial, *view.sizes,
            split.groups, split.parts, split.tiles, split.tiles_per_part, eps, negative_slope,
            PLANAR=view.planar, ACTIVATION=activation, ROWS=split.rows, COLS=split.cols, LONG=view.long,
            num_warps=_WARPS,
        )  # fmt: skip
        _finish_sums[(triton.cdiv(view.channels, 32),)](
            partial, grad_bias, grad_weight, split.parts, view.channels,
            PARTS=triton.next_power_of_2(split.parts), BLOCK=32, num_warps=_WARPS,
        )  # fmt: skip
        grid, tile = _tiling(view, x.element_size())
        _backward_apply[grid](
            grad_y, x, residual, weight, bias, mean, var, grad_bias, grad_weight, grad_x, grad_residual, *view.matrix,
            view.channels, eps, negative_slope, 1.0 / (view.outer * view.inner),
            PLANAR=view.planar, TRAINING=training, ACTIVATION=activation, LONG=view.long, num_warps=_WARPS, **tile,
        )  # fmt: skip


class _View(NamedTuple):
    """x as [outer, channels, inner]. ``long``: 1 where offsets need 64 bits, 2 where row or column numbers do too."""

    outer: int
    channels: int
    inner: int
    planar: bool
    long: int

    @classmethod
    def of(cls, x: Tensor, channels_last: bool) -> _View:
        channels = x.shape[1]
        outer = x.numel() // channels if channels_last else x.shape[0]
        inner = x.numel() // (outer * channels)
        rows, cols = (outer * channels, inner) if inner > 1 else (outer, channels)
        return cls(outer, channels, inner, inner > 1, (x.numel() >= INT32_LIMIT) + (max(rows, cols) >= INT32_LIMIT))

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.outer, self.channels, self.inner

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.outer * self.channels, self.inner) if self.planar else (self.outer, self.channels)


class _Split(NamedTuple):
    """A reduction: ``groups`` of channels, each cut into ``tiles``, which ``parts`` programs share."""

    groups: int
    parts: int
    tiles: int
    tiles_per_part: int
    rows: int
    cols: int

    @classmethod
    def of(cls, view: _View, element_size: int) -> _Split:
        elements = _WARPS * lanes() * 8
        if view.planar:
            cols = min(elements, triton.next_power_of_2(view.inner))
            rows = min(elements // cols, triton.next_power_of_2(view.outer))
            groups, tiles = view.channels, triton.cdiv(view.outer, rows) * triton.cdiv(view.inner, cols)
        else:
            cols = min(128 // element_size, triton.next_power_of_2(view.channels))  # a row of 128 bytes
            rows = min(elements // cols, triton.next_power_of_2(view.outer))
            groups, tiles = triton.cdiv(view.channels, cols), triton.cdiv(view.outer, rows)
        wanted = min(tiles, _MOST_PARTS, triton.cdiv(ENOUGH_PROGRAMS, groups))
        tiles_per_part = triton.cdiv(tiles, wanted)
        return cls(groups, triton.cdiv(tiles, tiles_per_part), tiles, tiles_per_part, rows, cols)


def _tiling(view: _View, element_size: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and tile of an elementwise pass: two 16-byte accesses a thread and tensor."""
    rows, cols = view.matrix
    elements = _WARPS * lanes() * 2 * (16 // element_size)
    tile_cols = min(elements, triton.next_power_of_2(cols))
    tile_rows = min(elements // tile_cols, triton.next_power_of_2(rows))
    grid = (triton.cdiv(rows, tile_rows) * triton.cdiv(cols, tile_cols),)
    return grid, {"ROWS": tile_rows, "COLS": tile_cols}


# --- reductions ------------------------------------------------------------------------------------------------------


# x: [outer, channels, inner]. partial: [3, parts, channels] float32: count, mean, sum of squared deviations.
@triton.jit
def _statistics(
    x, partial, outer, channels, inner, groups, parts, tiles, tiles_per_part,
    PLANAR: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    group, part = tl.program_id(0) % groups, tl.program_id(0) // groups
    # Welford's algorithm in every lane: one count, mean and sum of squared deviations each.
    count = tl.zeros([ROWS, COLS], tl.float32)
    mean = tl.zeros([ROWS, COLS], tl.float32)
    squares = tl.zeros([ROWS, COLS], tl.float32)
    for tile in range(part * tiles_per_part, tl.minimum((part + 1) * tiles_per_part, tiles)):
        offset, mask = _reduction_tile(tile, group, outer, channels, inner, PLANAR, ROWS, COLS, LONG)
        value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
        count += mask.to(tl.float32)
        delta = tl.where(mask, value - mean, 0.0)
        mean += delta / tl.maximum(count, 1.0)
        squares += delta * (value - mean)
    # The lanes are merged by Chan's formula, all at once.
    total = _over_channel(count, PLANAR)
    center = _over_channel(count * mean, PLANAR) / tl.maximum(total, 1.0)
    deviation = mean - (center if PLANAR else center[None, :])
    spread = _over_channel(squares + count * deviation * deviation, PLANAR)
    _store_partial(partial, 0, total, group, part, parts, channels, PLANAR, COLS)
    _store_partial(partial, 1, center, group, part, parts, channels, PLANAR, COLS)
    _store_partial(partial, 2, spread, group, part, parts, channels, PLANAR, COLS)


# partial: [3, parts, channels]. mean, var: [channels]. All float32.
@triton.jit
def _finish_statistics(partial, mean, var, parts, channels, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counts = _load_partial(partial, 0, channel, parts, channels, PARTS)
    means = _load_partial(partial, 1, channel, parts, channels, PARTS)
    squares = _load_partial(partial, 2, channel, parts, channels, PARTS)
    total = tl.maximum(tl.sum(counts, 0), 1.0)
    center = tl.sum(counts * means, 0) / total
    deviation = means - center[None, :]
    tl.store(mean + channel, center, mask=channel < channels)
    tl.store(var + channel, tl.sum(squares + counts * deviation * deviation, 0) / total, mask=channel < channels)


# grad_y, x, residual: [outer, channels, inner]. weight, bias, mean, var: [channels] float32.
# partial: [2, parts, channels] float32: sums of g and of g xhat, where g = grad_y act'(u).
@triton.jit
def _backward_sums(
    grad_y, x, residual, weight, bias, mean, var, partial, outer, channels, inner,
    groups, parts, tiles, tiles_per_part, eps, negative_slope,
    PLANAR: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    group, part = tl.program_id(0) % groups, tl.program_id(0) // groups
    channel = group if PLANAR else (group * COLS + tl.arange(0, COLS))[None, :]
    center, invstd, scale, shift = _channel(mean, var, weight, bias, channel, channel < channels, eps)
    sum_g = tl.zeros([ROWS, COLS], tl.float32)
    sum_gx = tl.zeros([ROWS, COLS], tl.float32)
    for tile in range(part * tiles_per_part, tl.minimum((part + 1) * tiles_per_part, tiles)):
        offset, mask = _reduction_tile(tile, group, outer, channels, inner, PLANAR, ROWS, COLS, LONG)
        g, xhat = _gradient(
            grad_y, x, residual, offset, mask, center, invstd, scale, shift, negative_slope, ACTIVATION
        )  # fmt: skip
        sum_g += g
        sum_gx += g * xhat
    _store_partial(partial, 0, _over_channel(sum_g, PLANAR), group, part, parts, channels, PLANAR, COLS)
    _store_partial(partial, 1, _over_channel(sum_gx, PLANAR), group, part, parts, channels, PLANAR, COLS)


# partial: [2, parts, channels]. grad_bias, grad_weight: [channels]. All float32.
@triton.jit
def _finish_sums(partial, grad_bias, grad_weight, parts, channels, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sums = _load_partial(partial, 0, channel, parts, channels, PARTS)
    tl.store(grad_bias + channel, tl.sum(sums, 0), mask=channel < channels)
    sums = _load_partial(partial, 1, channel, parts, channels, PARTS)
    tl.store(grad_weight + channel, tl.sum(sums, 0), mask=channel < channels)


@triton.jit
def _reduction_tile(
    tile, group, outer, channels, inner,
    PLANAR: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Offsets and mask of one tile of a group of channels."""
    if LONG > 1:
        tile = tile.to(tl.int64)
    if PLANAR:
        inner_tiles = (inner + COLS - 1) // COLS
        row = tile // inner_tiles * ROWS + tl.arange(0, ROWS)
        col = tile % inner_tiles * COLS + tl.arange(0, COLS)
        limit = inner
    else:
        row = tile * ROWS + tl.arange(0, ROWS)
        col = group * COLS + tl.arange(0, COLS)
        limit = channels
    mask = (row < outer)[:, None] & (col < limit)[None, :]
    if LONG > 0:
        row = row.to(tl.int64)
    start = (row * channels + group) * inner if PLANAR else row * channels
    return start[:, None] + col[None, :], mask


@triton.jit
def _over_channel(values, PLANAR: tl.constexpr):
    """Sum over what belongs to one channel: the whole tile, or each column."""
    return tl.sum(values) if PLANAR else tl.sum(values, 0)


@triton.jit
def _store_partial(
    partial, plane, values, group, part, parts, channels, PLANAR: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    start = partial + (plane * parts + part) * channels
    if PLANAR:
        tl.store(start + group, values)
    else:
        channel = group * COLS + tl.arange(0, COLS)
        tl.store(start + channel, values, mask=channel < channels)


@triton.jit
def _load_partial(partial, plane, channel, parts, channels, PARTS: tl.constexpr):
    part = tl.arange(0, PARTS)
    mask = (part < parts)[:, None] & (channel < channels)[None, :]
    return tl.load(partial + (plane * parts + part[:, None]) * channels + channel[None, :], mask=mask, other=0.0)


# --- elementwise passes ----------------------------------------------------------------------------------------------


# x, residual, y: [rows, cols]. weight, bias, mean, var: [channels] float32.
@triton.jit
def _normalize(
    x, residual, weight, bias, mean, var, y, rows, cols, channels, eps, negative_slope,
    PLANAR: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    offset, mask, channel, valid = _elementwise_tile(rows, cols, channels, PLANAR, ROWS, COLS, LONG)
    center, invstd, scale, shift = _channel(mean, var, weight, bias, channel, valid, eps)
    u = (tl.load(x + offset, mask=mask, other=0.0).to(tl.float32) - center) * invstd * scale + shift
    if residual is not None:
        u += tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + offset, activate(u, negative_slope, ACTIVATION).to(y.dtype.element_ty), mask=mask)


# grad_y, x, residual, grad_x, grad_residual: [rows, cols]. The others, but for the sizes: [channels] float32.
@triton.jit
def _backward_apply(
    grad_y, x, residual, weight, bias, mean, var, sum_g, sum_gx, grad_x, grad_residual, rows, cols,
    channels, eps, negative_slope, inverse_count,
    PLANAR: tl.constexpr, TRAINING: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    offset, mask, channel, valid = _elementwise_tile(rows, cols, channels, PLANAR, ROWS, COLS, LONG)
    center, invstd, scale, shift = _channel(mean, var, weight, bias, channel, valid, eps)
    g, xhat = _gradient(grad_y, x, residual, offset, mask, center, invstd, scale, shift, negative_slope, ACTIVATION)
    if grad_residual is not None:
        tl.store(grad_residual + offset, g.to(grad_residual.dtype.element_ty), mask=mask)
    if TRAINING:
        g -= tl.load(sum_g + channel, mask=valid, other=0.0) * inverse_count
        g -= xhat * (tl.load(sum_gx + channel, mask=valid, other=0.0) * inverse_count)
    tl.store(grad_x + offset, (g * (invstd * scale)).to(grad_x.dtype.element_ty), mask=mask)


@triton.jit
def _elementwise_tile(
    rows, cols, channels, PLANAR: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, LONG: tl.constexpr
):  # fmt: skip
    """Offsets and mask of this program's tile, and the channels of its rows or columns with their mask."""
    col_tiles = tl.cdiv(cols, COLS)
    row_tile, col_tile = tl.program_id(0) // col_tiles, tl.program_id(0) % col_tiles
    if LONG > 1:
        row_tile, col_tile = row_tile.to(tl.int64), col_tile.to(tl.int64)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    col = col_tile * COLS + tl.arange(0, COLS)
    mask = (row < rows)[:, None] & (col < cols)[None, :]
    channel = (row % channels)[:, None] if PLANAR else col[None, :]
    valid = (row < rows)[:, None] if PLANAR else (col < cols)[None, :]
    start = row.to(tl.int64) * cols if LONG > 0 else row * cols
    return start[:, None] + col[None, :], mask, channel, valid


@triton.jit
def _channel(mean, var, weight, bias, channel, valid, eps):
    """Mean, inverse standard deviation, weight and bias of each channel."""
    center = tl.load(mean + channel, mask=valid, other=0.0)
    invstd = 1.0 / tl.sqrt_rn(tl.load(var + channel, mask=valid, other=1.0) + eps)
    scale = tl.load(weight + channel, mask=valid, other=0.0) if weight is not None else channel * 0 + 1.0
    shift = tl.load(bias + channel, mask=valid, other=0.0) if bias is not None else channel * 0.0
    return center, invstd, scale, shift


@triton.jit
def _gradient(
    grad_y, x, residual, offset, mask, center, invstd, scale, shift, negative_slope, ACTIVATION: tl.constexpr
):  # fmt: skip
    """g = grad_y act'(u) and xhat = (x - mean) invstd; g is 0 where the mask is false."""
    xhat = (tl.load(x + offset, mask=mask, other=0.0).to(tl.float32) - center) * invstd
    u = xhat * scale + shift
    if residual is not None:
        u += tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad_y + offset, mask=mask, other=0.0).to(tl.float32)
    return g * activation_derivative(u, negative_slope, ACTIVATION), xhat
