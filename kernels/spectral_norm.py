"""Spectral normalisation: products with W and W^T in two stages, then W / sigma; and its gradient.

A weight is [outer, rows, inner] in memory: u belongs to the rows, v to outer and inner together. Each product is cut
into parts along its sum; a second kernel adds the parts up in a fixed order and normalises. Everything inside is
float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ._launch import ENOUGH_PROGRAMS, INT32_LIMIT, on_device

_ROWS, _COLUMNS, _CHUNK, _WARPS = 16, 128, 4096, 4
_MOST_PARTS = 64


def spectral_norm(
    weights: Sequence[Tensor],
    vectors: Tensor,
    n_power_iterations: int,
    eps: float,
    dims: Sequence[int],
    v_first: bool,
    normal: Sequence[Tensor],
    sigma: Tensor,
) -> None:
    """Move u and v of each layer, and write sigma and ``normal`` = W / sigma.

    Args:
        weights, normal: contiguous, one dtype; an empty ``normal`` is not written.
        vectors: float32, u and v of each layer one after another.
        dims: of the rows. sigma: float32, ``[layers]``.
    """
    offset = 0
    with on_device(vectors):
        for i, (weight, dim) in enumerate(zip(weights, dims, strict=True)):
            view = _View.of(weight, dim)
            u, v = vectors[offset : offset + view.rows], vectors[offset + view.rows :][: view.columns]
            offset += view.rows + view.columns
            turns = ["v", "u"] * n_power_iterations if v_first else ["u", "v"] * n_power_iterations
            for turn in turns or ["u" if v_first else "v"]:
                _product(view, weight, u, v, turn == "v", n_power_iterations > 0, float(eps), sigma[i : i + 1])
            if normal[i].numel() > 0:
                _scale[(triton.cdiv(weight.numel(), _CHUNK),)](
                    weight, normal[i], sigma[i : i + 1], weight.numel(), float(eps),
                    CHUNK=_CHUNK, LONG=view.long, num_warps=_WARPS,
                )  # fmt: skip


def spectral_norm_backward(
    grads: Sequence[Tensor],
    grad_sigma: Tensor,
    weights: Sequence[Tensor],
    sigma: Tensor,
    vectors: Tensor,
    eps: float,
    dims: Sequence[int],
    grad_weights: Sequence[Tensor],
) -> None:
    """Write G / sigma + (g_sigma - <G, W> / sigma^2) u v^T for each layer; an empty G counts as zero."""
    offset = 0
    with on_device(vectors):
        for i, (weight, dim) in enumerate(zip(weights, dims, strict=True)):
            view = _View.of(weight, dim)
            u, v = vectors[offset : offset + view.rows], vectors[offset + view.rows :][: view.columns]
            offset += view.rows + view.columns
            if weight.numel() == 0:
                continue
            chunks = triton.cdiv(weight.numel(), _CHUNK)
            given, parts = grads[i].numel() > 0, min(chunks, ENOUGH_PROGRAMS)
            partial = vectors.new_empty((parts,))
            if given:
                _inner_product[(parts,)](
                    grads[i], weight, partial, weight.numel(), triton.cdiv(chunks, parts),
                    CHUNK=_CHUNK, LONG=view.long, num_warps=_WARPS,
                )  # fmt: skip
            _apply[(chunks,)](
                grads[i], partial, sigma[i : i + 1], grad_sigma[i : i + 1], u, v, grad_weights[i],
                weight.numel(), view.rows, view.inner, parts, float(eps),
                GIVEN=given, PARTS=triton.next_power_of_2(parts), CHUNK=_CHUNK, LONG=view.long, num_warps=_WARPS,
            )  # fmt: skip


class _View(NamedTuple):
    outer: int
    rows: int
    inner: int
    long: bool

    @classmethod
    def of(cls, weight: Tensor, dim: int) -> _View:
        outer, inner = weight.shape[:dim].numel(), weight.shape[dim + 1 :].numel()
        return cls(outer, weight.shape[dim], inner, weight.numel() >= INT32_LIMIT)

    @property
    def columns(self) -> int:
        return self.outer * self.inner


def _product(
    view: _View, weight: Tensor, u: Tensor, v: Tensor, by_rows: bool, normalize: bool, eps: float, sigma: Tensor
) -> None:
    """v from W^T u (``by_rows``: the sum runs over them), or u from W v; sigma is the product's with the result."""
    length, summed = (view.columns, view.rows) if by_rows else (view.rows, view.columns)
    block, step = (_COLUMNS, _ROWS) if by_rows else (_ROWS, _COLUMNS)
    blocks, steps = triton.cdiv(length, block), triton.cdiv(summed, step)
    parts = max(min(steps, _MOST_PARTS, triton.cdiv(ENOUGH_PROGRAMS, max(blocks, 1))), 1)
    partial = u.new_empty((parts, length))
    if length > 0:
        _multiply[(blocks, parts)](
            weight, u if by_rows else v, partial, view.rows, view.columns, view.inner, length,
            triton.cdiv(steps, parts),
            BY_ROWS=by_rows, ROWS=_ROWS, COLUMNS=_COLUMNS, LONG=view.long, num_warps=_WARPS,
        )  # fmt: skip
    _finish[(1,)](
        partial, v if by_rows else u, sigma, parts, length, eps,
        NORMALIZE=normalize, PARTS=triton.next_power_of_2(parts), BLOCK=64, num_warps=_WARPS,
    )  # fmt: skip


# weight: [outer, rows, inner]. vector: [rows] or [columns]. partial: [parts, length].
@triton.jit
def _multiply(
    weight, vector, partial, rows, columns, inner, length, steps,
    BY_ROWS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    block, part = tl.program_id(0), tl.program_id(1)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(part * steps, (part + 1) * steps):
        row = (step if BY_ROWS else block) * ROWS + tl.arange(0, ROWS)
        column = (block if BY_ROWS else step) * COLUMNS + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        # Column c is element c % inner of slice c // inner.
        place = column // inner * (rows * inner).to(tl.int64) if LONG else column // inner * (rows * inner)
        offset = place[None, :] + (row * inner)[:, None] + (column % inner)[None, :]
        w = tl.load(weight + offset, mask=mask, other=0.0).to(tl.float32)
        if BY_ROWS:
            total += w * tl.load(vector + row, mask=row < rows, other=0.0)[:, None]
        else:
            total += w * tl.load(vector + column, mask=column < columns, other=0.0)[None, :]
    if BY_ROWS:
        index = block * COLUMNS + tl.arange(0, COLUMNS)
        tl.store(partial + part * length + index, tl.sum(total, 0), mask=index < length)
    else:
        index = block * ROWS + tl.arange(0, ROWS)
        tl.store(partial + part * length + index, tl.sum(total, 1), mask=index < length)


# partial: [parts, length]. vector: [length], normalised anew or as it is. sigma: one number.
@triton.jit
def _finish(
    partial, vector, sigma, parts, length, eps, NORMALIZE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    squares = tl.zeros([BLOCK], tl.float32)
    products = tl.zeros([BLOCK], tl.float32)
    for start in range(0, length, BLOCK):
        product, index = _add_parts(partial, start, parts, length, PARTS, BLOCK)
        squares += product * product
        products += product * tl.load(vector + index, mask=index < length, other=0.0)
    norm = tl.sqrt_rn(tl.sum(squares))
    stride = length
    result = tl.sum(products)
    if NORMALIZE:
        result = tl.where(norm >= eps, norm, result)
        length = tl.where(norm >= eps, length, 0)
        for start in range(0, length, BLOCK):
            product, index = _add_parts(partial, start, parts, stride, PARTS, BLOCK)
            tl.store(vector + index, product / norm, mask=index < length)
    tl.store(sigma, result)


@triton.jit
def _add_parts(partial, start, parts, length, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    index, part = start + tl.arange(0, BLOCK), tl.arange(0, PARTS)
    mask = (part < parts)[:, None] & (index < length)[None, :]
    values = tl.load(partial + part[:, None] * length + index[None, :], mask=mask, other=0.0)
    return tl.sum(values, 0), index


@triton.jit
def _chunk(chunk, numel, CHUNK: tl.constexpr, LONG: tl.constexpr):
    index = (chunk.to(tl.int64) if LONG else chunk) * CHUNK + tl.arange(0, CHUNK)
    return index, index < numel


@triton.jit
def _scale(weight, normal, sigma, numel, eps, CHUNK: tl.constexpr, LONG: tl.constexpr):
    index, mask = _chunk(tl.program_id(0), numel, CHUNK, LONG)
    divisor = tl.load(sigma)
    factor = tl.where(tl.abs(divisor) < eps, 1.0, 1.0 / divisor)
    w = tl.load(weight + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(normal + index, (w * factor).to(normal.dtype.element_ty), mask=mask)


# partial: [parts], <G, W> in parts of `chunks` chunks.
@triton.jit
def _inner_product(grad, weight, partial, numel, chunks, CHUNK: tl.constexpr, LONG: tl.constexpr):
    total = tl.zeros([CHUNK], tl.float32)
    for chunk in range(tl.program_id(0) * chunks, (tl.program_id(0) + 1) * chunks):
        index, mask = _chunk(chunk, numel, CHUNK, LONG)
        g = tl.load(grad + index, mask=mask, other=0.0).to(tl.float32)
        total += g * tl.load(weight + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(partial + tl.program_id(0), tl.sum(total))


@triton.jit
def _apply(
    grad, partial, sigma, grad_sigma, u, v, to, numel, rows, inner, parts, eps,
    GIVEN: tl.constexpr, PARTS: tl.constexpr, CHUNK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    if GIVEN:
        part = tl.arange(0, PARTS)
        product = tl.sum(tl.load(partial + part, mask=part < parts, other=0.0))
        divisor = tl.load(sigma)
        divided = tl.abs(divisor) >= eps
        safe = tl.where(divided, divisor, 1.0)
        slope = tl.load(grad_sigma) - tl.where(divided, product / safe / safe, 0.0)
    else:
        slope = tl.load(grad_sigma)
    index, mask = _chunk(tl.program_id(0), numel, CHUNK, LONG)
    row = index // inner
    column = row // rows * inner + index % inner
    x = tl.load(u + row % rows, mask=mask, other=0.0) * tl.load(v + column, mask=mask, other=0.0)
    if GIVEN:
        g = tl.load(grad + index, mask=mask, other=0.0).to(tl.float32)
        result = g / safe + slope * x
    else:
        result = slope * x
    tl.store(to + index, result.to(to.dtype.element_ty), mask=mask)
