"""Convolution and transposed convolution in 1-d to 3-d as implicit GEMM, and the gradient to their weights.

Nothing is unfolded and no zeros are inserted. An output pixel ``p`` of a convolution gathers its taps ``t`` at
``p stride - padding + t dilation``. Of a transposed one, pixels that leave the same remainder ``r`` on division by the
stride see the same few taps: with ``p = m stride + r``, tap ``t`` lies at ``m + (r + padding - t dilation) / stride``
where that is whole. So both are the same kernel: *phases* of output pixels, each with a table of taps and offsets. A
weight gradient is one product over pixels for each tap; programs that share the pixels leave partial sums, which are
added in a fixed order.

Tensors have any strides. Sums are float32; the products of float32 are not rounded to TF32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import ENOUGH_PROGRAMS, needs_64_bits, on_device, tuned
from ._math import activate, sigmoid

PRELU, SIGMOID = tl.constexpr(6), tl.constexpr(5)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    scale: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
    activation: int,
    negative_slope: float,
    y: Tensor,
) -> None:
    """Write y = act(scale convolution(x, weight) + bias + residual).

    Args:
        x, y, residual: ``[N, C, ...]``, ``[N, O, ...]``, ``[N, O, ...]`` with 0 to 3 spatial dimensions, one dtype.
        weight: ``[O, C / groups, ...]``, transposed ``[C, O / groups, ...]``.
        bias, slopes: ``[O]`` or None; slopes are PReLU's.
        scale: ``[N, O]``, any strides, or None.
        activation: its number in ``gencore.ops._activation``.
    """
    if y.numel() == 0:
        return
    kernel = tuple(weight.shape[2:])
    taps, phases = _phases(kernel, tuple(stride), tuple(padding), tuple(dilation), tuple(y.shape[2:]), transposed)
    per_group = weight.shape[0] // groups
    # [groups, taps, channels in, channels out]: rows of output channels, which a tile loads whole.
    order = (0, 3, 1, 2) if transposed else (0, 3, 2, 1)
    packed = weight.reshape(groups, per_group, weight.shape[1], -1).permute(order).contiguous()
    in_channels, out_channels = packed.shape[2:]
    ones, strides = _three((), 1), _three(stride, 1)
    step, spread = (ones, strides) if transposed else (strides, ones)
    x, y = _volume(x), _volume(y)
    residual = None if residual is None else _volume(residual)
    pixels = x.shape[0] * int(phases[:, 5:].prod(1).max())

    def grid(meta: dict[str, int]) -> tuple[int, int, int]:
        tiles = triton.cdiv(pixels, meta["BLOCK_M"]) * triton.cdiv(out_channels, meta["BLOCK_N"])
        return tiles, len(phases), groups

    with on_device(x):
        _convolve[grid](
            x, packed, bias, residual, slopes, scale, y, taps.to(x.device), phases.to(x.device),
            *x.stride(), *y.stride(),
            *((0,) * 5 if residual is None else residual.stride()),
            *((0, 0) if scale is None else scale.stride()), *x.shape[2:], x.shape[0], in_channels,
            out_channels, packed.shape[1], *step, *spread, float(negative_slope),
            ACTIVATION=activation, LONG=needs_64_bits(x, packed, residual, scale, y),
        )  # fmt: skip


def convolution_weight_gradient(
    dense: Tensor,
    gathered: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The sum over pixels q of dense[q, d] gathered[q stride - padding + t dilation, g] as ``[D, G / groups, ...]``.

    Args:
        dense, gathered: ``[N, D, ...]`` and ``[N, G, ...]`` with 0 to 3 spatial dimensions, one dtype.

    Returns:
        float32.
    """
    shape = (dense.shape[1], gathered.shape[1] // groups, *kernel)
    if dense.numel() == 0 or gathered.numel() == 0:
        return dense.new_zeros(shape, dtype=torch.float32)
    taps, _ = _phases(
        tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), tuple(dense.shape[2:]), False
    )  # fmt: skip
    dense, gathered = _volume(dense), _volume(gathered)
    rows, columns = shape[0] // groups, shape[1]
    pixels = dense.shape[0] * dense.shape[2:].numel()
    tiles = triton.cdiv(rows, 64) * triton.cdiv(columns, 64) * len(taps) * groups
    parts = max(1, min(triton.cdiv(ENOUGH_PROGRAMS, tiles), triton.cdiv(pixels, 512)))
    partial = dense.new_empty((parts, groups, rows, columns, len(taps)), dtype=torch.float32)

    def grid(meta: dict[str, int]) -> tuple[int, int, int]:
        return triton.cdiv(rows, meta["BLOCK_M"]) * triton.cdiv(columns, meta["BLOCK_N"]), parts, groups * len(taps)

    with on_device(dense):
        _weight_gradient[grid](
            dense, gathered, partial, taps.to(dense.device), *dense.stride(), *gathered.stride(), *dense.shape[2:],
            *gathered.shape[2:], pixels, triton.cdiv(pixels, parts), rows, columns, len(taps), *_three(stride, 1),
            LONG=needs_64_bits(dense, gathered, partial),
        )  # fmt: skip
    return partial.sum(0).view(shape)


def _three(values: Sequence[int], fill: int) -> tuple[int, ...]:
    return (*(fill,) * (3 - len(values)), *values)


def _volume(x: Tensor) -> Tensor:
    """A view of ``x`` with three spatial dimensions, the first ones of size 1."""
    while x.dim() < 5:
        x = x.unsqueeze(2)
    return x


@lru_cache(maxsize=256)
def _phases(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    out_size: tuple[int, ...],
    transposed: bool,
) -> tuple[Tensor, Tensor]:
    """The taps, ``[T, 4]`` int32: number in the kernel, offset in the input; and the phases of the output pixels,
    ``[P, 8]``: first tap, past the last, the phase's first pixel, and how many pixels it has in each dimension."""
    sizes, steps = _three(kernel, 1), _three(stride, 1)
    pads, spacing, out = _three(padding, 0), _three(dilation, 1), _three(out_size, 1)
    every_tap = list(product(*map(range, sizes)))
    taps: list[tuple[int, ...]] = []
    phases: list[tuple[int, ...]] = []
    for first in product(*map(range, steps)) if transposed else [(0, 0, 0)]:
        step = steps if transposed else (1, 1, 1)
        count = [max(0, -(-(o - f) // s)) for o, f, s in zip(out, first, step, strict=True)]
        if 0 in count:
            continue
        start = len(taps)
        for number, tap in enumerate(every_tap):
            shifts = [t * d - p for t, d, p in zip(tap, spacing, pads, strict=True)]
            if transposed:
                shifts = [f - shift for f, shift in zip(first, shifts, strict=True)]
                if any(shift % s for shift, s in zip(shifts, steps, strict=True)):
                    continue
                shifts = [shift // s for shift, s in zip(shifts, steps, strict=True)]
            taps.append((number, *shifts))
        phases.append((start, len(taps), *first, *count))
    return torch.tensor(taps, dtype=torch.int32).reshape(-1, 4), torch.tensor(phases, dtype=torch.int32)


def _config(m: int, n: int, k: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)


# Few: each costs a compilation at first sight of a shape. Products of float32 run on the plain units, whose operands
# fill the registers: short, flat tiles. Small tiles, for small images and few channels, come first.
_FLOAT_CONFIGS = [
    _config(64, 32, 16, 4, 2),
    _config(64, 64, 16, 4, 2),
    _config(64, 64, 16, 8, 2),
    _config(128, 64, 16, 8, 2),
]
_HALF_CONFIGS = [
    _config(64, 32, 32, 4, 3),
    _config(64, 64, 32, 4, 3),
    _config(128, 64, 32, 4, 3),
    _config(128, 128, 32, 8, 3),
]


def _of_dtype(configs: list[triton.Config], arguments: dict[str, Any], **_: Any) -> list[triton.Config]:
    fitting = _FLOAT_CONFIGS if arguments["x"].dtype == torch.float32 else _HALF_CONFIGS
    return [config for config in configs if config in fitting]


# x: [N, C, D, H, W]. weight: [groups, taps, C / groups, O / groups] dense. bias, slopes: [O]. scale: [N, O].
# y, residual: [N, O, ...].
# taps: [T, 4] and phases: [P, 8], int32.
@tuned(
    [*_FLOAT_CONFIGS, *_HALF_CONFIGS],
    _of_dtype,
    ["images", "depth", "height", "width", "in_channels", "out_channels", "kernel_taps"],
)
@triton.jit
def _convolve(
    x, weight, bias, residual, slopes, scale, y, taps, phases,
    x_n, x_c, x_d, x_h, x_w, y_n, y_c, y_d, y_h, y_w, r_n, r_c, r_d, r_h, r_w, s_n, s_c,
    depth, height, width, images, in_channels, out_channels, kernel_taps, step_d, step_h, step_w,
    spread_d, spread_h, spread_w, negative_slope,
    ACTIVATION: tl.constexpr, LONG: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    column_tiles = tl.cdiv(out_channels, BLOCK_N)
    phase = phases + tl.program_id(1) * 8
    group = tl.program_id(2)
    planes, rows, cols = tl.load(phase + 5), tl.load(phase + 6), tl.load(phase + 7)
    pixel = _wide(tl.program_id(0) // column_tiles, LONG) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = pixel < _wide(images, LONG) * planes * rows * cols
    image, m_d, m_h, m_w = _coordinates(pixel, planes, rows, cols)
    out = tl.program_id(0) % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for index in range(tl.load(phase), tl.load(phase + 1)):
        tap = taps + index * 4
        number = tl.load(tap)
        i_d = m_d * step_d + tl.load(tap + 1)
        i_h = m_h * step_h + tl.load(tap + 2)
        i_w = m_w * step_w + tl.load(tap + 3)
        inside = real & (i_d >= 0) & (i_d < depth) & (i_h >= 0) & (i_h < height) & (i_w >= 0) & (i_w < width)
        source = image * x_n + i_d * x_d + i_h * x_h + i_w * x_w
        panel = weight + _wide(group * kernel_taps + number, LONG) * in_channels * out_channels
        for start in range(0, in_channels, BLOCK_K):
            channel = start + tl.arange(0, BLOCK_K)
            known = channel < in_channels
            offset = source[:, None] + _wide(group * in_channels + channel, LONG)[None, :] * x_c
            a = tl.load(x + offset, mask=inside[:, None] & known[None, :], other=0.0)
            b = tl.load(
                panel + channel[:, None] * out_channels + out[None, :],
                mask=known[:, None] & (out < out_channels)[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(a, b, total, input_precision="ieee")

    o_d = m_d * spread_d + tl.load(phase + 2)
    o_h = m_h * spread_h + tl.load(phase + 3)
    o_w = m_w * spread_w + tl.load(phase + 4)
    mask = real[:, None] & (out < out_channels)[None, :]
    channel = group * out_channels + out
    wide = _wide(channel, LONG)[None, :]
    if scale is not None:
        total *= tl.load(scale + image[:, None] * s_n + wide * s_c, mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, mask=out < out_channels, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        offset = (image * r_n + o_d * r_d + o_h * r_h + o_w * r_w)[:, None] + wide * r_c
        total += tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == SIGMOID:
        total = sigmoid(total)
    elif ACTIVATION == PRELU:
        slope = tl.load(slopes + channel, mask=out < out_channels, other=0.0).to(tl.float32)
        total = tl.where(total > 0, total, total * slope[None, :])
    else:
        total = activate(total, negative_slope, ACTIVATION)
    offset = (image * y_n + o_d * y_d + o_h * y_h + o_w * y_w)[:, None] + wide * y_c
    tl.store(y + offset, total.to(y.dtype.element_ty), mask=mask)


# x, the dense one: [N, D, ...], gathered: [N, G, ...]. partial: [parts, groups, D / groups, G / groups, taps] float32.
# taps: [T, 4] int32.
@tuned(
    [*_FLOAT_CONFIGS[1::2], *_HALF_CONFIGS], _of_dtype, ["pixels", "dense_channels", "gathered_channels", "kernel_taps"]
)
@triton.jit
def _weight_gradient(
    x, gathered, partial, taps,
    d_n, d_c, d_d, d_h, d_w, g_n, g_c, g_d, g_h, g_w, planes, rows, cols, depth, height, width,
    pixels, pixels_per_part, dense_channels, gathered_channels, kernel_taps, step_d, step_h, step_w,
    LONG: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    column_tiles = tl.cdiv(gathered_channels, BLOCK_N)
    part = _wide(tl.program_id(1), LONG)
    group, number = tl.program_id(2) // kernel_taps, tl.program_id(2) % kernel_taps
    shift_d, shift_h, shift_w = (
        tl.load(taps + number * 4 + 1),
        tl.load(taps + number * 4 + 2),
        tl.load(taps + number * 4 + 3),
    )
    row = tl.program_id(0) // column_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    dense_row = _wide(group * dense_channels + row, LONG)[:, None] * d_c
    gathered_column = _wide(group * gathered_channels + column, LONG)[None, :] * g_c
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    end = tl.minimum((part + 1) * pixels_per_part, pixels)
    for start in range(part * pixels_per_part, end, BLOCK_K):
        pixel = start + tl.arange(0, BLOCK_K)
        real = pixel < end
        image, q_d, q_h, q_w = _coordinates(pixel, planes, rows, cols)
        offset = (image * d_n + q_d * d_d + q_h * d_h + q_w * d_w)[None, :] + dense_row
        a = tl.load(x + offset, mask=(row < dense_channels)[:, None] & real[None, :], other=0.0)
        i_d, i_h, i_w = q_d * step_d + shift_d, q_h * step_h + shift_h, q_w * step_w + shift_w
        inside = real & (i_d >= 0) & (i_d < depth) & (i_h >= 0) & (i_h < height) & (i_w >= 0) & (i_w < width)
        offset = (image * g_n + i_d * g_d + i_h * g_h + i_w * g_w)[:, None] + gathered_column
        b = tl.load(gathered + offset, mask=inside[:, None] & (column < gathered_channels)[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    target = ((part * (tl.num_programs(2) // kernel_taps) + group) * dense_channels + row)[:, None] * gathered_channels
    mask = (row < dense_channels)[:, None] & (column < gathered_channels)[None, :]
    tl.store(partial + _wide(target + column[None, :], True) * kernel_taps + number, total, mask=mask)


@triton.jit
def _coordinates(pixel, planes, rows, cols):
    """Image, plane, row and column of each pixel, 64-bit where offsets are."""
    return (
        pixel // cols // rows // planes,
        pixel // cols // rows % planes,
        pixel // cols % rows,
        pixel % cols,
    )


@triton.jit
def _wide(number, LONG: tl.constexpr):
    if LONG:
        number = number.to(tl.int64)
    return number
