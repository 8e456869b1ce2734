"""softmax(scale Q K^T) V by tiles: the forward, and three kernels of the backward, each of which works the weights out
again. The result's columns are cut among programs where they are many; the scores, whose width is small, are then
worked out by each of them.

Products run on the matrix units: 16-bit operands as they are, float32 in three TF32 products on NVIDIA. Everything else
is float32. ``peaks`` and ``inverse_totals`` are what softmax subtracted and divided by.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import INT32_LIMIT, lanes, on_device

_LOG2E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-3.4028234663852886e38)


def self_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, out: Tensor, peaks: Tensor, inverse_totals: Tensor
) -> None:
    """Write ``out`` and, float32 ``[B, N]``, ``peaks`` and ``inverse_totals``.

    Args:
        query: ``[B, N, d]``, key ``[B, M, d]``, value ``[B, M, dv]``, out ``[B, N, dv]``: one dtype, any strides.
    """
    if out.numel() == 0:
        return
    tile = _tiles(query, value)
    grid = (triton.cdiv(query.shape[1], tile["ROWS"]), triton.cdiv(value.shape[2], tile["VALUES"]), query.shape[0])
    with on_device(query):
        _forward[grid](
            query, key, value, out, peaks, inverse_totals,
            *query.stride(), *key.stride(), *value.stride(), *out.stride(), *_sizes(query, value), float(scale), **tile,
        )  # fmt: skip


def self_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    peaks: Tensor,
    inverse_totals: Tensor,
    scale: float,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
) -> None:
    """Write the gradients of query, key and value; each has the shape and dtype of its tensor."""
    tile, sizes = _tiles(query, value), _sizes(query, value)
    batch, queries, _ = query.shape
    deltas = torch.empty_like(peaks)
    row_blocks, key_blocks = triton.cdiv(queries, tile["ROWS"]), triton.cdiv(key.shape[1], tile["KEYS"])
    inputs = (query, key, value, grad_out, peaks, inverse_totals, deltas)
    strides = (*query.stride(), *key.stride(), *value.stride(), *grad_out.stride())
    with on_device(query):
        _dot_rows[(row_blocks, 1, batch)](
            grad_out, out, deltas, *grad_out.stride(), *out.stride(), queries, value.shape[2],
            ROWS=tile["ROWS"], VALUES=tile["VALUES"], LONG=tile["LONG"], num_warps=tile["num_warps"],
        )  # fmt: skip
        _grad_value[(key_blocks, triton.cdiv(value.shape[2], tile["VALUES"]), batch)](
            *inputs, grad_value, *strides, *grad_value.stride(), *sizes, float(scale), **tile
        )
        if query.shape[2] == 0:
            return
        _grad_key[(key_blocks, 1, batch)](*inputs, grad_key, *strides, *grad_key.stride(), *sizes, float(scale), **tile)
        _grad_query[(row_blocks, 1, batch)](
            *inputs, grad_query, *strides, *grad_query.stride(), *sizes, float(scale), **tile
        )


def _tiles(query: Tensor, value: Tensor) -> dict[str, object]:
    """Tile sizes; 16 is the least that a matrix unit takes."""
    single = query.element_size() == 4
    width = max(16, triton.next_power_of_2(query.shape[2]))
    rows = 32 if single or width > 64 else 64
    # Offsets within one entry of the batch; the batch's own are always 64 bits.
    reach = max(sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True)) for x in (query, value))
    return {
        "ROWS": rows,
        "KEYS": rows,
        "WIDTH": width,
        "VALUES": max(16, min(32 if single or lanes() == 64 else 64, triton.next_power_of_2(value.shape[2]))),
        "PRECISION": "tf32x3" if lanes() == 32 else "ieee",
        "LONG": reach >= INT32_LIMIT // 2,
        # Three TF32 products want many registers.
        "num_warps": 8 if single and lanes() == 32 else 4,
        "num_stages": 1,
    }


def _sizes(query: Tensor, value: Tensor) -> tuple[int, int, int, int]:
    return query.shape[1], value.shape[1], query.shape[2], value.shape[2]


@triton.jit
def _load(x, row, column, rows, columns, row_stride, column_stride):
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(x + row[:, None] * row_stride + column[None, :] * column_stride, mask=mask, other=0.0)


@triton.jit
def _store(x, values, row, column, rows, columns, row_stride, column_stride):
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    offset = row[:, None] * row_stride + column[None, :] * column_stride
    tl.store(x + offset, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _indices(block, SIZE: tl.constexpr, LONG: tl.constexpr):
    index = block * SIZE + tl.arange(0, SIZE)
    return index.to(tl.int64) if LONG else index


# query: [B, n, d]. key: [B, m, d]. value: [B, m, dv]. out: [B, n, dv]. peaks, inverse_totals: [B, n].
@triton.jit
def _forward(
    query, key, value, out, peaks, inverse_totals, qb, qr, qc, kb, kr, kc, vb, vr, vc, ob, orow, oc, n, m, d, dv, scale,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    PRECISION: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    query, key, value, out = query + batch * qb, key + batch * kb, value + batch * vb, out + batch * ob
    row, column = _indices(tl.program_id(0), ROWS, LONG), _indices(tl.program_id(1), VALUES, LONG)
    width = tl.arange(0, WIDTH)
    q = _load(query, row, width, n, d, qr, qc)
    peak = tl.full([ROWS], _LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, VALUES], tl.float32)
    for block in range(tl.cdiv(m, KEYS)):
        keys = _indices(block, KEYS, LONG)
        k = _load(key, keys, width, m, d, kr, kc)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where((keys < m)[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        shrink = tl.exp2((peak - higher) * _LOG2E)
        weights = tl.exp2((scores - higher[:, None]) * _LOG2E)
        total = total * shrink + tl.sum(weights, 1)
        v = _load(value, keys, column, m, dv, vr, vc)
        acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        peak = higher
    inverse = 1.0 / total if m > 0 else total
    _store(out, acc * inverse[:, None], row, column, n, dv, orow, oc)
    if tl.program_id(1) == 0:
        tl.store(peaks + batch * n + row, peak, mask=row < n)
        tl.store(inverse_totals + batch * n + row, inverse, mask=row < n)


# a, b: [B, n, dv]. to: [B, n] float32.
@triton.jit
def _dot_rows(
    a, b, to, ab, ar, ac, bb, br, bc, n, dv, ROWS: tl.constexpr, VALUES: tl.constexpr, LONG: tl.constexpr
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    row = _indices(tl.program_id(0), ROWS, LONG)
    total = tl.zeros([ROWS], tl.float32)
    for block in range(tl.cdiv(dv, VALUES)):
        column = _indices(block, VALUES, LONG)
        x = _load(a + batch * ab, row, column, n, dv, ar, ac).to(tl.float32)
        total += tl.sum(x * _load(b + batch * bb, row, column, n, dv, br, bc).to(tl.float32), 1)
    tl.store(to + batch * n + row, total, mask=row < n)


@triton.jit
def _weights(q, k, peaks, inverse_totals, row, keys, n, m, scale, PRECISION: tl.constexpr):
    """Softmax's weights of a tile, 0 outside of the matrix."""
    peak = tl.load(peaks + row, mask=row < n, other=0.0)
    inverse = tl.load(inverse_totals + row, mask=row < n, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    weights = tl.exp2((scores - peak[:, None]) * _LOG2E) * inverse[:, None]
    return tl.where((row < n)[:, None] & (keys < m)[None, :], weights, 0.0)


@triton.jit
def _grad_scores(
    q, k, value, grad, peaks, inverse_totals, deltas, row, keys, vr, vc, gr, gc, n, m, dv, scale,
    VALUES: tl.constexpr, PRECISION: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """P (dO V^T - delta) and P of a tile."""
    weights = _weights(q, k, peaks, inverse_totals, row, keys, n, m, scale, PRECISION)
    slope = tl.zeros(weights.shape, tl.float32)
    for block in range(tl.cdiv(dv, VALUES)):
        column = _indices(block, VALUES, LONG)
        g = _load(grad, row, column, n, dv, gr, gc)
        v = _load(value, keys, column, m, dv, vr, vc)
        slope += tl.dot(g, tl.trans(v), input_precision=PRECISION)
    delta = tl.load(deltas + row, mask=row < n, other=0.0)
    return tl.where(weights > 0, weights * (slope - delta[:, None]), weights), weights


# grad: [B, n, dv], the gradient of the result. to: [B, m, dv].
@triton.jit
def _grad_value(
    query, key, value, grad, peaks, inverse_totals, deltas, to, qb, qr, qc, kb, kr, kc, vb, vr, vc, gb, gr, gc,
    tb, tr, tc, n, m, d, dv, scale,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    PRECISION: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    query, key, grad, to = query + batch * qb, key + batch * kb, grad + batch * gb, to + batch * tb
    peaks, inverse_totals = peaks + batch * n, inverse_totals + batch * n
    keys, column = _indices(tl.program_id(0), KEYS, LONG), _indices(tl.program_id(1), VALUES, LONG)
    width = tl.arange(0, WIDTH)
    k = _load(key, keys, width, m, d, kr, kc)
    acc = tl.zeros([KEYS, VALUES], tl.float32)
    for block in range(tl.cdiv(n, ROWS)):
        row = _indices(block, ROWS, LONG)
        q = _load(query, row, width, n, d, qr, qc)
        weights = _weights(q, k, peaks, inverse_totals, row, keys, n, m, scale, PRECISION)
        g = _load(grad, row, column, n, dv, gr, gc)
        acc += tl.dot(tl.trans(weights).to(g.dtype), g, input_precision=PRECISION)
    _store(to, acc, keys, column, m, dv, tr, tc)


# to: [B, m, d].
@triton.jit
def _grad_key(
    query, key, value, grad, peaks, inverse_totals, deltas, to, qb, qr, qc, kb, kr, kc, vb, vr, vc, gb, gr, gc,
    tb, tr, tc, n, m, d, dv, scale,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    PRECISION: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    query, key, value, grad = query + batch * qb, key + batch * kb, value + batch * vb, grad + batch * gb
    peaks, inverse_totals, deltas = peaks + batch * n, inverse_totals + batch * n, deltas + batch * n
    keys, width = _indices(tl.program_id(0), KEYS, LONG), tl.arange(0, WIDTH)
    k = _load(key, keys, width, m, d, kr, kc)
    acc = tl.zeros([KEYS, WIDTH], tl.float32)
    for block in range(tl.cdiv(n, ROWS)):
        row = _indices(block, ROWS, LONG)
        q = _load(query, row, width, n, d, qr, qc)
        slopes, _ = _grad_scores(
            q, k, value, grad, peaks, inverse_totals, deltas, row, keys, vr, vc, gr, gc, n, m, dv, scale,
            VALUES, PRECISION, LONG,
        )  # fmt: skip
        acc += tl.dot(tl.trans(slopes).to(q.dtype), q, input_precision=PRECISION)
    _store(to + batch * tb, acc * scale, keys, width, m, d, tr, tc)


# to: [B, n, d].
@triton.jit
def _grad_query(
    query, key, value, grad, peaks, inverse_totals, deltas, to, qb, qr, qc, kb, kr, kc, vb, vr, vc, gb, gr, gc,
    tb, tr, tc, n, m, d, dv, scale,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    PRECISION: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    query, key, value, grad = query + batch * qb, key + batch * kb, value + batch * vb, grad + batch * gb
    peaks, inverse_totals, deltas = peaks + batch * n, inverse_totals + batch * n, deltas + batch * n
    row, width = _indices(tl.program_id(0), ROWS, LONG), tl.arange(0, WIDTH)
    q = _load(query, row, width, n, d, qr, qc)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    # The rows of the slopes add up to 0, but for the rounding of delta: what that does to acc is taken off again.
    rest = tl.zeros([ROWS], tl.float32)
    average = tl.zeros([ROWS, WIDTH], tl.float32)
    for block in range(tl.cdiv(m, KEYS)):
        keys = _indices(block, KEYS, LONG)
        k = _load(key, keys, width, m, d, kr, kc)
        slopes, weights = _grad_scores(
            q, k, value, grad, peaks, inverse_totals, deltas, row, keys, vr, vc, gr, gc, n, m, dv, scale,
            VALUES, PRECISION, LONG,
        )  # fmt: skip
        slopes = slopes.to(k.dtype)
        acc += tl.dot(slopes, k, input_precision=PRECISION)
        rest += tl.sum(slopes.to(tl.float32), 1)
        average += tl.dot(weights.to(k.dtype), k, input_precision=PRECISION)
    _store(to + batch * tb, (acc - rest[:, None] * average) * scale, row, width, n, d, tr, tc)
