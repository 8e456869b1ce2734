"""Reparameterisation and KL divergence in one pass, with the noise of Philox drawn in the kernel.

A row is cut into blocks of 64 elements. Counter 16 b + l gives the elements 16 w + l, w = 0..3, of block b, so a tile
of [ROWS, COUNTERS] counters serves four tiles of elements, each read in runs of 16 neighbours: 16-byte accesses.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._launch import ENOUGH_PROGRAMS, INT32_LIMIT, lanes, on_device
from ._math import exp_and_expm1, philox_normal

_WARPS = 4


def reparameterize_kl(mu: Tensor, logvar: Tensor, seed: Tensor, sample: bool, z: Tensor, kl: Tensor) -> None:
    """Write z = mu + exp(logvar / 2) eps and kl = 1/2 sum(exp(logvar) + mu^2 - 1 - logvar).

    Args:
        mu, logvar: ``[N, ...]``, contiguous, one dtype.
        seed: int64, one element, read on the device: no synchronisation.
        z: like ``mu``. kl: ``[N]``, float32.
    """
    rows = kl.numel()
    if mu.numel() == 0:
        kl.zero_()
        return
    columns = mu.numel() // rows
    row_tile, counters, tiles, long = _tiling(rows, columns, mu.element_size())
    row_programs = triton.cdiv(rows, row_tile)
    chunks = min(tiles, triton.cdiv(ENOUGH_PROGRAMS, row_programs))
    tiles_per_chunk = triton.cdiv(tiles, chunks)
    chunks = triton.cdiv(tiles, tiles_per_chunk)
    sums = kl if chunks == 1 else kl.new_empty((rows, chunks))
    with on_device(mu):
        _forward[(row_programs * chunks,)](
            mu, logvar, seed, z, sums, rows, columns, chunks, tiles_per_chunk,
            SAMPLE=sample, ROWS=row_tile, COUNTERS=counters, LONG=long, num_warps=_WARPS,
        )  # fmt: skip
        if chunks > 1:
            _sum_chunks[(rows,)](sums, kl, chunks, BLOCK=1024, num_warps=_WARPS)


def reparameterize_kl_backward(
    grad_z: Tensor,
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    sample: bool,
    grad_mu: Tensor,
    grad_logvar: Tensor,
) -> None:
    """Write grad_mu = gz + gk mu and grad_logvar = 1/2 (gz eps exp(logvar / 2) + gk (exp(logvar) - 1)).

    Args:
        grad_z, mu, logvar, grad_mu, grad_logvar: ``[N, ...]``, contiguous, one dtype.
        grad_kl: ``[N]``, float32. seed: int64, one element, as in the forward.
    """
    rows = grad_kl.numel()
    if mu.numel() == 0:
        return
    columns = mu.numel() // rows
    row_tile, counters, tiles, long = _tiling(rows, columns, mu.element_size())
    with on_device(mu):
        _backward[(triton.cdiv(rows, row_tile) * tiles,)](
            grad_z, grad_kl, mu, logvar, seed, grad_mu, grad_logvar, rows, columns, tiles,
            SAMPLE=sample, ROWS=row_tile, COUNTERS=counters, LONG=long, num_warps=_WARPS,
        )  # fmt: skip


def _tiling(rows: int, columns: int, element_size: int) -> tuple[int, int, int, int]:
    """Rows and counters of a tile, tiles in a row, and what needs 64 bits: 0 nothing, 1 offsets, 2 columns as well."""
    blocks = triton.cdiv(columns, 64)
    counters_in_tile = _WARPS * lanes() * (16 // element_size)  # 16 bytes a thread and access
    counters = min(counters_in_tile, triton.next_power_of_2(16 * blocks))
    row_tile = min(counters_in_tile // counters, triton.next_power_of_2(rows))
    long = (max(rows * columns, 16 * rows * blocks) >= INT32_LIMIT) + (columns >= INT32_LIMIT)
    return row_tile, counters, triton.cdiv(16 * blocks, counters), long


# mu, logvar, z: [rows, columns] of the input's dtype. seed: [1] int64. sums: [rows, chunks] float32.
@triton.jit
def _forward(
    mu, logvar, seed, z, sums, rows, columns, chunks, tiles_per_chunk,
    SAMPLE: tl.constexpr, ROWS: tl.constexpr, COUNTERS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    row_tile, chunk = _split(tl.program_id(0), chunks, LONG)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    key = tl.load(seed)
    total = tl.zeros([ROWS, COUNTERS], tl.float32)
    for tile in range(tiles_per_chunk):
        offset, column, noise0, noise1, noise2, noise3 = _tile(
            key, row, chunk * tiles_per_chunk + tile, columns, SAMPLE, COUNTERS
        )
        total += _forward_part(mu, logvar, z, noise0, row, column, offset, rows, columns, SAMPLE, 0)
        total += _forward_part(mu, logvar, z, noise1, row, column, offset, rows, columns, SAMPLE, 16)
        total += _forward_part(mu, logvar, z, noise2, row, column, offset, rows, columns, SAMPLE, 32)
        total += _forward_part(mu, logvar, z, noise3, row, column, offset, rows, columns, SAMPLE, 48)
    tl.store(sums + row * chunks + chunk, 0.5 * tl.sum(total, 1), mask=row < rows)


@triton.jit
def _split(program, parts, LONG: tl.constexpr):
    """``program`` as (row tile, part of the row); what offsets are made of is 64-bit, the division never."""
    row_tile, part = program // parts, program % parts
    if LONG > 0:
        row_tile = row_tile.to(tl.int64)
    if LONG > 1:
        part = part.to(tl.int64)
    return row_tile, part


@triton.jit
def _tile(key, row, tile, columns, SAMPLE: tl.constexpr, COUNTERS: tl.constexpr):
    """Offsets and columns of the elements of word 0, and the noise of all four words."""
    counter = tile * COUNTERS + tl.arange(0, COUNTERS)  # within the row
    column = counter // 16 * 64 + counter % 16
    offset = row[:, None] * columns + column[None, :]
    if SAMPLE:
        counters_in_row = (columns + 63) // 64 * 16
        noise0, noise1, noise2, noise3 = philox_normal(key, row[:, None] * counters_in_row + counter[None, :])
    else:
        noise0 = tl.zeros(offset.shape, tl.float32)
        noise1, noise2, noise3 = noise0, noise0, noise0
    return offset, column, noise0, noise1, noise2, noise3


@triton.jit
def _forward_part(mu, logvar, z, noise, row, column, offset, rows, columns, SAMPLE: tl.constexpr, SHIFT: tl.constexpr):
    mask = (row < rows)[:, None] & (column + SHIFT < columns)[None, :]
    m = tl.load(mu + offset + SHIFT, mask=mask, other=0.0).to(tl.float32)
    lv = tl.load(logvar + offset + SHIFT, mask=mask, other=0.0).to(tl.float32)
    sigma, h = exp_and_expm1(0.5 * lv)
    value = m + sigma * noise if SAMPLE else m
    tl.store(z + offset + SHIFT, value.to(z.dtype.element_ty), mask=mask)
    # exp(lv) - 1 = h (h + 2) keeps its digits near lv = 0. Masked lanes add zero.
    return h * (h + 2.0) - lv + m * m


# sums: [rows, chunks], kl: [rows], both float32.
@triton.jit
def _sum_chunks(sums, kl, chunks, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        total += tl.load(sums + row * chunks + chunk, mask=chunk < chunks, other=0.0)
    tl.store(kl + row, tl.sum(total, 0))


# grad_z, mu, logvar, grad_mu, grad_logvar: [rows, columns]. grad_kl: [rows] float32. seed: [1] int64.
@triton.jit
def _backward(
    grad_z, grad_kl, mu, logvar, seed, grad_mu, grad_logvar, rows, columns, tiles,
    SAMPLE: tl.constexpr, ROWS: tl.constexpr, COUNTERS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    row_tile, tile = _split(tl.program_id(0), tiles, LONG)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    gk = tl.load(grad_kl + row, mask=row < rows, other=0.0)[:, None]
    offset, column, noise0, noise1, noise2, noise3 = _tile(tl.load(seed), row, tile, columns, SAMPLE, COUNTERS)
    _backward_part(grad_z, gk, mu, logvar, grad_mu, grad_logvar, noise0, row, column, offset, rows, columns, SAMPLE, 0)
    _backward_part(grad_z, gk, mu, logvar, grad_mu, grad_logvar, noise1, row, column, offset, rows, columns, SAMPLE, 16)
    _backward_part(grad_z, gk, mu, logvar, grad_mu, grad_logvar, noise2, row, column, offset, rows, columns, SAMPLE, 32)
    _backward_part(grad_z, gk, mu, logvar, grad_mu, grad_logvar, noise3, row, column, offset, rows, columns, SAMPLE, 48)


@triton.jit
def _backward_part(
    grad_z, gk, mu, logvar, grad_mu, grad_logvar, noise, row, column, offset, rows, columns,
    SAMPLE: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    mask = (row < rows)[:, None] & (column + SHIFT < columns)[None, :]
    gz = tl.load(grad_z + offset + SHIFT, mask=mask, other=0.0).to(tl.float32)
    m = tl.load(mu + offset + SHIFT, mask=mask, other=0.0).to(tl.float32)
    lv = tl.load(logvar + offset + SHIFT, mask=mask, other=0.0).to(tl.float32)
    sigma, h = exp_and_expm1(0.5 * lv)
    g = tl.where(gk == 0.0, 0.0, 0.5 * gk * (h * (h + 2.0)))  # an unused divergence may be infinite: no 0 * inf
    if SAMPLE:
        g += 0.5 * gz * noise * sigma
    tl.store(grad_mu + offset + SHIFT, (gz + gk * m).to(grad_mu.dtype.element_ty), mask=mask)
    tl.store(grad_logvar + offset + SHIFT, g.to(grad_logvar.dtype.element_ty), mask=mask)
