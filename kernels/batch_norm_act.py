"""Batch normalisation with a fused activation and residual: split reductions, then one elementwise pass.

Memory is seen in one of two ways. *Planar* (contiguous N, C, H, W): rows are the N C planes, columns the positions, and
a row belongs to channel ``row % C``. *By rows* (channels_last, and [N, C]): columns are the channels. A reduction gives
each channel, or each tile of channels, to many programs; their partial results, [parts, C], are merged by a second
kernel in a fixed order. Everything inside is float32, whatever the tensors are.

The same kernels make conditional batch norm (weight and bias [N, C]: sums go sample by sample, along the grid's second
axis) and instance norm (statistics too; where x is planar, it is batch norm of one sample with N C channels).
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
    per_sample: bool,
    instance: bool,
    eps: float,
    activation: int,
    negative_slope: float,
    channels_last: bool,
    y: Tensor,
) -> None:
    """Write y = act((x - mean) / sqrt(var + eps) weight + bias + residual); in training also mean and var of the batch.

    Args:
        x, residual, y: ``[N, C, ...]``, one dtype and one dense layout: contiguous or ``channels_last``.
        weight, bias: ``[C]``, or ``[N, C]`` where ``per_sample``; float32 or None.
        mean, var: ``[C]``, or ``[N, C]`` where ``instance``; float32; written if ``training``, var being biased.
        activation: its number in ``gencore.ops._activation``.
    """
    if x.numel() == 0:
        return
    view = _View.of(x, channels_last, instance)
    with on_device(x):
        if training:
            own = view.sample if instance else view
            split = _Split.of(own, x.element_size(), view.samples if instance else 1)
            count = view.samples if instance else 1
            partial = mean.new_empty((count, 3, split.parts, view.channels))
            _statistics[(split.groups * split.parts, count)](
                x, partial, *own.sizes, split.groups, split.parts, split.tiles, split.tiles_per_part,
                PLANAR=view.planar, ROWS=split.rows, COLS=split.cols, LONG=view.long, num_warps=_WARPS,
            )  # fmt: skip
            _finish_statistics[(triton.cdiv(view.channels, 32), count)](
                partial, mean, var, split.parts, view.channels,
                PARTS=triton.next_power_of_2(split.parts), BLOCK=32, num_warps=_WARPS,
            )  # fmt: skip
        grid, tile = _tiling(view, x.element_size())
        _normalize[grid](
            x, residual, weight, bias, mean, var, y, *view.matrix, view.channels, view.rows_per_sample,
            float(eps), float(negative_slope), PLANAR=view.planar, AFFINE=view.samples > 1 and per_sample,
            INSTANCE=view.samples > 1 and instance, ACTIVATION=activation, LONG=view.long, num_warps=_WARPS, **tile,
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
    per_sample: bool,
    instance: bool,
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
        weight, bias, mean, var: as in the forward. grad_weight, grad_bias: float32, shaped as weight and bias.
    """
    if x.numel() == 0:
        return
    view = _View.of(x, channels_last, instance)
    eps, negative_slope = float(eps), float(negative_slope)
    affine, instance = view.samples > 1 and per_sample, view.samples > 1 and instance
    with on_device(x):
        own, count = (view.sample, view.samples) if affine else (view, 1)
        split = _Split.of(own, x.element_size(), count)
        partial = mean.new_empty((count, 2, split.parts, view.channels))
        _backward_sums[(split.groups * split.parts, count)](
            grad_y, x, residual, weight, bias, mean, var, partial, *own.sizes,
            split.groups, split.parts, split.tiles, split.tiles_per_part, eps, negative_slope,
            PLANAR=view.planar, INSTANCE=instance, ACTIVATION=activation, ROWS=split.rows, COLS=split.cols,
            LONG=view.long, num_warps=_WARPS,
        )  # fmt: skip
        _finish_sums[(triton.cdiv(view.channels, 32), count)](
            partial, grad_bias, grad_weight, split.parts, view.channels,
            PARTS=triton.next_power_of_2(split.parts), BLOCK=32, num_warps=_WARPS,
        )  # fmt: skip
        sum_g, sum_gx = grad_bias, grad_weight
        conditional = affine and not instance
        if conditional:  # the means are taken over all samples, of the gradients times the weights
            sum_g, sum_gx = ((v if weight is None else v * weight).sum(0) for v in (grad_bias, grad_weight))
        grid, tile = _tiling(view, x.element_size())
        elements = own.outer * own.inner if instance else view.outer * view.inner
        _backward_apply[grid](
            grad_y, x, residual, weight, bias, mean, var, sum_g, sum_gx, grad_x, grad_residual, *view.matrix,
            view.channels, view.rows_per_sample, eps, negative_slope, 1.0 / elements,
            PLANAR=view.planar, TRAINING=training, AFFINE=affine, INSTANCE=instance, CONDITIONAL=conditional,
            ACTIVATION=activation, LONG=view.long, num_warps=_WARPS, **tile,
        )  # fmt: skip


class _View(NamedTuple):
    """x as [outer, channels, inner], of ``samples`` equal parts one behind the other.

    ``long``: 1 where offsets need 64 bits, 2 where row or column numbers do too.
    """

    outer: int
    channels: int
    inner: int
    planar: bool
    long: int
    samples: int

    @classmethod
    def of(cls, x: Tensor, channels_last: bool, instance: bool) -> _View:
        samples, channels = x.shape[:2]
        outer = x.numel() // channels if channels_last else samples
        inner = x.numel() // (outer * channels)
        rows, cols = (outer * channels, inner) if inner > 1 else (outer, channels)
        long = (x.numel() >= INT32_LIMIT) + (max(rows, cols) >= INT32_LIMIT)
        if instance and inner > 1:
            return cls(1, samples * channels, inner, True, long, 1)
        return cls(outer, channels, inner, inner > 1, long, samples)

    @property
    def sample(self) -> _View:
        """One sample."""
        return self._replace(outer=self.outer // self.samples, samples=1)

    @property
    def rows_per_sample(self) -> int:
        return self.outer // self.samples * (self.channels if self.planar else 1)

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
    def of(cls, view: _View, element_size: int, samples: int) -> _Split:
        """Of each of ``samples`` reductions of the size of ``view``, which run side by side."""
        elements = _WARPS * lanes() * 8
        if view.planar:
            cols = min(elements, triton.next_power_of_2(view.inner))
            rows = min(elements // cols, triton.next_power_of_2(view.outer))
            groups, tiles = view.channels, triton.cdiv(view.outer, rows) * triton.cdiv(view.inner, cols)
        else:
            cols = min(128 // element_size, triton.next_power_of_2(view.channels))  # a row of 128 bytes
            rows = min(elements // cols, triton.next_power_of_2(view.outer))
            groups, tiles = triton.cdiv(view.channels, cols), triton.cdiv(view.outer, rows)
        wanted = min(tiles, _MOST_PARTS, triton.cdiv(ENOUGH_PROGRAMS, groups * samples))
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


# (An `outer` or `parts` of 1 folded into the code makes the compiler unroll the loop until registers spill.)
# x: [samples, outer, channels, inner]. partial: [samples, 3, parts, channels] float32: count, mean, sum of squared
# deviations.
@triton.jit(do_not_specialize=["outer", "parts"])
def _statistics(
    x, partial, outer, channels, inner, groups, parts, tiles, tiles_per_part,
    PLANAR: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    group, part = tl.program_id(0) % groups, tl.program_id(0) // groups
    sample = tl.program_id(1)
    if LONG > 0:
        sample = sample.to(tl.int64)
    x += sample * outer * channels * inner
    partial += sample * 3 * parts * channels
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


# partial: [samples, 3, parts, channels]. mean, var: [samples, channels]. All float32.
@triton.jit
def _finish_statistics(partial, mean, var, parts, channels, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.program_id(1)
    partial += sample * 3 * parts * channels
    mean += sample * channels
    var += sample * channels
    counts = _load_partial(partial, 0, channel, parts, channels, PARTS)
    means = _load_partial(partial, 1, channel, parts, channels, PARTS)
    squares = _load_partial(partial, 2, channel, parts, channels, PARTS)
    total = tl.maximum(tl.sum(counts, 0), 1.0)
    center = tl.sum(counts * means, 0) / total
    deviation = means - center[None, :]
    tl.store(mean + channel, center, mask=channel < channels)
    tl.store(var + channel, tl.sum(squares + counts * deviation * deviation, 0) / total, mask=channel < channels)


# grad_y, x, residual: [samples, outer, channels, inner]. weight, bias: [samples, channels] float32. mean, var: the same
# if INSTANCE, or [channels].
# partial: [samples, 2, parts, channels] float32: sums of g and of g xhat, where g = grad_y act'(u).
@triton.jit(do_not_specialize=["outer", "parts"])
def _backward_sums(
    grad_y, x, residual, weight, bias, mean, var, partial, outer, channels, inner,
    groups, parts, tiles, tiles_per_part, eps, negative_slope,
    PLANAR: tl.constexpr, INSTANCE: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    LONG: tl.constexpr,
):  # fmt: skip
    group, part = tl.program_id(0) % groups, tl.program_id(0) // groups
    sample = tl.program_id(1)
    if LONG > 0:
        sample = sample.to(tl.int64)
    start = sample * outer * channels * inner
    grad_y += start
    x += start
    if residual is not None:
        residual += start
    partial += sample * 2 * parts * channels
    channel = group if PLANAR else (group * COLS + tl.arange(0, COLS))[None, :]
    own = channel + sample * channels
    statistics = own if INSTANCE else channel
    center, invstd, scale, shift = _channel(mean, var, weight, bias, statistics, own, channel < channels, eps)
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


# partial: [samples, 2, parts, channels]. grad_bias, grad_weight: [samples, channels]. All float32.
@triton.jit
def _finish_sums(partial, grad_bias, grad_weight, parts, channels, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.program_id(1)
    partial += sample * 2 * parts * channels
    grad_bias += sample * channels
    grad_weight += sample * channels
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


# x, residual, y: [rows, cols]. weight, bias (if AFFINE), mean, var (if INSTANCE): [samples, channels] float32, or
# [channels].
@triton.jit
def _normalize(
    x, residual, weight, bias, mean, var, y, rows, cols, channels, rows_per_sample, eps, negative_slope,
    PLANAR: tl.constexpr, AFFINE: tl.constexpr, INSTANCE: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    offset, mask, channel, own, valid = _elementwise_tile(
        rows, cols, channels, rows_per_sample, PLANAR, AFFINE, ROWS, COLS, LONG
    )
    statistics, affine = own if INSTANCE else channel, own if AFFINE else channel
    center, invstd, scale, shift = _channel(mean, var, weight, bias, statistics, affine, valid, eps)
    u = (tl.load(x + offset, mask=mask, other=0.0).to(tl.float32) - center) * invstd * scale + shift
    if residual is not None:
        u += tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + offset, activate(u, negative_slope, ACTIVATION).to(y.dtype.element_ty), mask=mask)


# grad_y, x, residual, grad_x, grad_residual: [rows, cols]. The others as in _normalize; sum_g and sum_gx as the mean,
# and times the weight if CONDITIONAL.
@triton.jit
def _backward_apply(
    grad_y, x, residual, weight, bias, mean, var, sum_g, sum_gx, grad_x, grad_residual, rows, cols,
    channels, rows_per_sample, eps, negative_slope, inverse_count,
    PLANAR: tl.constexpr, TRAINING: tl.constexpr, AFFINE: tl.constexpr, INSTANCE: tl.constexpr,
    CONDITIONAL: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    offset, mask, channel, own, valid = _elementwise_tile(
        rows, cols, channels, rows_per_sample, PLANAR, AFFINE, ROWS, COLS, LONG
    )
    statistics, affine = own if INSTANCE else channel, own if AFFINE else channel
    center, invstd, scale, shift = _channel(mean, var, weight, bias, statistics, affine, valid, eps)
    g, xhat = _gradient(grad_y, x, residual, offset, mask, center, invstd, scale, shift, negative_slope, ACTIVATION)
    if grad_residual is not None:
        tl.store(grad_residual + offset, g.to(grad_residual.dtype.element_ty), mask=mask)
    if CONDITIONAL:
        g *= scale
    if TRAINING:
        g -= tl.load(sum_g + statistics, mask=valid, other=0.0) * inverse_count
        g -= xhat * (tl.load(sum_gx + statistics, mask=valid, other=0.0) * inverse_count)
    factor = invstd if CONDITIONAL else invstd * scale
    tl.store(grad_x + offset, (g * factor).to(grad_x.dtype.element_ty), mask=mask)


@triton.jit
def _elementwise_tile(
    rows, cols, channels, rows_per_sample, PLANAR: tl.constexpr, AFFINE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Offsets and mask of this program's tile, and the channels of its rows or columns: counted within a sample, over
    all samples if AFFINE, and the mask of both."""
    col_tiles = tl.cdiv(cols, COLS)
    row_tile, col_tile = tl.program_id(0) // col_tiles, tl.program_id(0) % col_tiles
    if LONG > 1:
        row_tile, col_tile = row_tile.to(tl.int64), col_tile.to(tl.int64)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    col = col_tile * COLS + tl.arange(0, COLS)
    mask = (row < rows)[:, None] & (col < cols)[None, :]
    channel = (row % channels)[:, None] if PLANAR else col[None, :]
    if PLANAR:
        own, valid = row[:, None], (row < rows)[:, None]
    elif AFFINE:
        own, valid = (row // rows_per_sample * channels)[:, None] + col[None, :], mask
    else:
        own, valid = col[None, :], (col < cols)[None, :]
    start = row.to(tl.int64) * cols if LONG > 0 else row * cols
    return start[:, None] + col[None, :], mask, channel, own, valid


@triton.jit
def _channel(mean, var, weight, bias, statistics, affine, valid, eps):
    """Mean, inverse standard deviation, weight and bias at the indices of the channels."""
    center = tl.load(mean + statistics, mask=valid, other=0.0)
    invstd = 1.0 / tl.sqrt_rn(tl.load(var + statistics, mask=valid, other=1.0) + eps)
    scale = tl.load(weight + affine, mask=valid, other=0.0) if weight is not None else affine * 0 + 1.0
    shift = tl.load(bias + affine, mask=valid, other=0.0) if bias is not None else affine * 0.0
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
