"""x and constant maps of the mean standard deviation within groups of samples; the gradient.

A sample is [channels, pixels], or [pixels, channels] where it is channels_last; a slice of its channels belongs to each
map. A program has a block of a slice in all samples of a group. Sums take two stages: blocks, then the blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import INT32_LIMIT, lanes, on_device

_WARPS = 4


def minibatch_stddev(
    x: Tensor,
    batch: int,
    channels: int,
    pixels: int,
    group: int,
    maps: int,
    eps: float,
    channels_last: bool,
    y: Tensor,
) -> None:
    """Write x, and the maps behind its channels.

    Args:
        x: ``[batch, channels, pixels]`` or ``[batch, pixels, channels]``, dense. y: likewise, with ``maps`` more
            channels, x's dtype.
        group: samples of a group; divides the batch. maps: divides the channels.
    """
    if pixels == 0:
        return
    plan = _Plan.of(x, batch, channels, pixels, group, maps, channels_last)
    partial = torch.empty((plan.rows, plan.blocks), dtype=torch.float32, device=x.device)
    with on_device(x):
        _copy_and_sum[(plan.rows * plan.blocks,)](
            x, y, partial, plan.groups, group, maps, channels, channels // maps, pixels, plan.blocks, eps,
            FLAT=plan.flat, PLANAR=not channels_last, BLOCK=plan.block, LONG=plan.long, num_warps=_WARPS,
        )  # fmt: skip
        _finish_maps[(batch * maps,)](
            partial, y, plan.groups, maps, channels, pixels, plan.blocks, float(plan.size),
            PLANAR=not channels_last, BLOCK=1024, LONG=plan.long, num_warps=_WARPS,
        )  # fmt: skip


def minibatch_stddev_backward(
    grad_y: Tensor,
    x: Tensor,
    batch: int,
    channels: int,
    pixels: int,
    group: int,
    maps: int,
    eps: float,
    channels_last: bool,
    grad_x: Tensor,
) -> None:
    """Write the gradient of x. grad_y: as y in the forward; grad_x: as x."""
    if pixels == 0:
        return
    plan = _Plan.of(x, batch, channels, pixels, group, maps, channels_last)
    sums = torch.empty((plan.rows,), dtype=torch.float32, device=x.device)
    with on_device(x):
        _sum_maps[(plan.rows,)](
            grad_y, sums, plan.groups, group, maps, channels, pixels,
            PLANAR=not channels_last, BLOCK=1024, LONG=plan.long, num_warps=_WARPS,
        )  # fmt: skip
        _add_deviations[(plan.rows * plan.blocks,)](
            grad_y, x, sums, grad_x, plan.groups, group, maps, channels, channels // maps, pixels, plan.blocks,
            float(plan.size), eps,
            FLAT=plan.flat, PLANAR=not channels_last, BLOCK=plan.block, LONG=plan.long, num_warps=_WARPS,
        )  # fmt: skip


class _Plan(NamedTuple):
    """Groups, rows (one map of one group), elements of a slice, their blocks; whether a slice is one piece of x."""

    groups: int
    rows: int
    size: int
    blocks: int
    block: int
    flat: bool
    long: bool

    @classmethod
    def of(cls, x: Tensor, batch: int, channels: int, pixels: int, group: int, maps: int, channels_last: bool) -> _Plan:
        groups, size = batch // group, channels // maps * pixels
        block = min(_WARPS * lanes() * (16 // x.element_size()), triton.next_power_of_2(size))
        y_numel = batch * (channels + maps) * pixels
        flat = not channels_last or maps == 1
        return cls(groups, groups * maps, size, triton.cdiv(size, block), block, flat, y_numel >= INT32_LIMIT)


# x: [batch, channels, pixels] (PLANAR) or [batch, pixels, channels]; y likewise with maps more channels. width: the
# channels of a slice; worked out in here, it would tell the compiler nothing about what divides it.
# partial: [groups * maps, blocks] float32, sums of standard deviations.
@triton.jit
def _copy_and_sum(
    x, y, partial, groups, group, maps, channels, width, pixels, blocks, eps,
    FLAT: tl.constexpr, PLANAR: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    sample, from_, to, mask = _elements(maps, channels, width, pixels, blocks, FLAT, PLANAR, BLOCK, LONG)
    total = tl.zeros([BLOCK], tl.float32)
    for g in range(group):
        n = g * groups + sample
        value = tl.load(x + n * channels * pixels + from_, mask=mask, other=0.0)
        tl.store(y + n * (channels + maps) * pixels + to, value, mask=mask)
        total += value.to(tl.float32)
    _, _, stddev = _statistics(total, x, from_, mask, sample, groups, group, channels, pixels, eps)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(mask, stddev, 0.0), 0))


# y: its maps alone are written. The others as above; a program has one map of one sample.
@triton.jit
def _finish_maps(
    partial, y, groups, maps, channels, pixels, blocks, size,
    PLANAR: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64) if LONG else tl.program_id(0)
    n, index = program // maps, program % maps
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        where = (n % groups * maps + index) * blocks + block
        total += tl.load(partial + where, mask=block < blocks, other=0.0)
    value = (tl.sum(total, 0) / size).to(y.dtype.element_ty)
    for start in range(0, pixels, BLOCK):
        offset, mask = _map(n, index, start, maps, channels, pixels, PLANAR, BLOCK)
        tl.store(y + offset, value, mask=mask)


# grad_y: as y above. sums: [groups * maps] float32, of each map over the samples of a group.
@triton.jit
def _sum_maps(
    grad_y, sums, groups, group, maps, channels, pixels,
    PLANAR: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64) if LONG else tl.program_id(0)
    sample, index = program // maps, program % maps
    total = tl.zeros([BLOCK], tl.float32)
    for g in range(group):
        for start in range(0, pixels, BLOCK):
            offset, mask = _map(g * groups + sample, index, start, maps, channels, pixels, PLANAR, BLOCK)
            total += tl.load(grad_y + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(sums + program, tl.sum(total, 0))


# grad_x: as x above.
@triton.jit
def _add_deviations(
    grad_y, x, sums, grad_x, groups, group, maps, channels, width, pixels, blocks, size, eps,
    FLAT: tl.constexpr, PLANAR: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    sample, from_, to, mask = _elements(maps, channels, width, pixels, blocks, FLAT, PLANAR, BLOCK, LONG)
    total = tl.zeros([BLOCK], tl.float32)
    for g in range(group):
        n = g * groups + sample
        total += tl.load(x + n * channels * pixels + from_, mask=mask, other=0.0).to(tl.float32)
    mean, residual, stddev = _statistics(total, x, from_, mask, sample, groups, group, channels, pixels, eps)
    factor = tl.load(sums + tl.program_id(0) // blocks) / (size * group) / stddev
    for g in range(group):
        n = g * groups + sample
        value = tl.load(x + n * channels * pixels + from_, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.load(grad_y + n * (channels + maps) * pixels + to, mask=mask, other=0.0).to(tl.float32)
        gradient += (value - mean - residual) * factor
        tl.store(grad_x + n * channels * pixels + from_, gradient.to(grad_x.dtype.element_ty), mask=mask)


@triton.jit
def _elements(
    maps, channels, width, pixels, blocks,
    FLAT: tl.constexpr, PLANAR: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """First sample of the program's group; offsets of its block in a sample of x and of y; which of them exist."""
    program = tl.program_id(0).to(tl.int64) if LONG else tl.program_id(0)
    row = program // blocks
    sample, index = row // maps, row % maps
    element = program % blocks * BLOCK + tl.arange(0, BLOCK)  # of the slice
    mask = element < width * pixels
    from_ = index * width * pixels + element if FLAT else _gathered(element, index, width, channels)
    to = from_ if PLANAR else from_ + from_ // channels * maps
    return sample, from_, to, mask


@triton.jit
def _gathered(element, index, width, channels):
    """Offsets of the elements of a slice whose channels are a part of each pixel's."""
    return element // width * channels + index * width + element % width


@triton.jit
def _statistics(total, x, from_, mask, sample, groups, group, channels, pixels, eps):
    """Mean over the group, of which ``total`` is the sum, what rounding it cost, the root of the biased variance + eps.

    Where the values nearly agree, the rounding of the mean is large beside their deviations: what these sum up to,
    instead of zero, is to be taken off them.
    """
    mean = total / group
    squares = tl.zeros(total.shape, tl.float32)
    residues = squares
    for g in range(group):
        n = g * groups + sample
        value = tl.load(x + n * channels * pixels + from_, mask=mask, other=0.0).to(tl.float32)
        squares += (value - mean) * (value - mean)
        residues += value - mean
    return mean, residues / group, tl.sqrt_rn(squares / group + eps)


@triton.jit
def _map(n, index, start, maps, channels, pixels, PLANAR: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets and mask of pixels of one map of sample n of y."""
    pixel = start + tl.arange(0, BLOCK)
    if PLANAR:
        offset = (n * (channels + maps) + channels + index) * pixels + pixel
    else:
        offset = (n * pixels + pixel) * (channels + maps) + channels + index
    return offset, pixel < pixels
