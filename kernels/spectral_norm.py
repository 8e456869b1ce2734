"""Spectral normalisation of all layers of a network in one launch, and its gradient in one.

A weight is [outer, rows, inner] in memory: u belongs to the rows, v to outer and inner together. The phases are (see
``_phases.py``): a product with W or W^T, cut into parts along its sum, for all layers at once; then the parts added up
in a fixed order, with the squares for the length; and so on in turn; at last sigma and W / sigma. A vector is divided
by its length where it is read. Everything inside is float32; the bits do not depend on the number of programs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _phases
from ._phases import (
    ADD,
    APPLY,
    COLUMNS_AT,
    ENTRY,
    FIRST_APPLY,
    FIRST_INNER,
    FIRST_SCALE,
    GIVEN_AT,
    INNER,
    INNER_AT,
    INNER_PARTS,
    LENGTHS,
    NUMEL_AT,
    ROWS_AT,
    SCALE,
    SIDE,
    SIDES,
    launches_of,
    note_addresses,
    pointer_at,
    run,
    tile_of,
    wait_for_all,
)  # fmt: skip

GROUP = 8  # parts that are added up at once


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
    turns, known = max(2 * n_power_iterations, 1), [result.numel() > 0 for result in normal]
    for layers, plan, own, addresses in launches_of(weights, vectors, dims, known):
        products, partial = torch.empty_like(own), own.new_empty(plan.partial)
        squares, dots = own.new_empty(plan.blocks), own.new_empty(plan.blocks)
        run(
            _iterate, 2 * turns + 2, plan, addresses, tuple(weights[layers]), tuple(normal[layers]),
            own, products, partial, squares, dots, sigma[layers],
            float(eps), turns, int(n_power_iterations > 0), int(not v_first),
            ROWS=_phases.ROWS, COLUMNS=plan.columns, BLOCK=_phases.BLOCK, GROUP=GROUP,
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
    known = [grad.numel() > 0 for grad in grads]
    for layers, plan, own, addresses in launches_of(weights, vectors, dims, known):
        run(
            _differentiate, 3, plan, addresses, tuple(weights[layers]), tuple(grads[layers]),
            tuple(grad_weights[layers]), own, own.new_empty(plan.inner_parts), sigma[layers], grad_sigma[layers],
            float(eps), PARTS=_phases.MOST_INNER,
        )  # fmt: skip


# --- kernels ---------------------------------------------------------------------------------------------------------

_UNSPECIALISED = ["counter", "first", "last", "turns", "iterating", "last_side"]


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _iterate(
    counter, first, last, table, owners, addresses, weights, normal, vectors, products, partial, squares, dots, sigma,
    eps, turns, iterating, last_side,
    ALIGNED: tl.constexpr, LONG: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Phases: the addresses; for each turn the product and its sum, u's and v's in turn, last of all that of
    ``last_side``; sigma and W / sigma."""
    if first == 0:  # not in the loop, through which the arguments would be kept in registers
        note_addresses(addresses, weights)
        note_addresses(addresses + len(weights), normal)
        if last > 1:
            wait_for_all(counter, tl.num_programs(0))
    for phase in range(max(first, 1), last):
        turn = (phase - 1) // 2
        side = (turns - 1 - turn + last_side) % 2
        if phase == 2 * turns + 1:
            if iterating != 0:
                _settle(table, owners, vectors, products, squares, eps, last_side, BLOCK)
            _write_sigma(table, squares, dots, sigma, len(weights), eps, iterating, last_side, BLOCK)
            _scale(
                table, owners, addresses, weights[0].dtype.element_ty, len(weights), squares, dots, eps, iterating,
                last_side, ALIGNED, LONG, BLOCK, CHUNK,
            )  # fmt: skip
        elif phase % 2 == 1:
            _multiply(
                table, owners, addresses, weights[0].dtype.element_ty, vectors, products, partial, squares, eps, side,
                turn > 0, ALIGNED, LONG, ROWS, COLUMNS, BLOCK,
            )  # fmt: skip
        else:
            _add_parts(table, owners, vectors, products, partial, squares, dots, side, BLOCK, GROUP)
            if turn > 0:  # the vector that this product was taken with
                _settle(table, owners, vectors, products, squares, eps, 1 - side, BLOCK)
        if phase + 1 < last:
            wait_for_all(counter, (phase + 1 - first) * tl.num_programs(0))


@triton.jit
def _length(table, entry, squares, side, BLOCK: tl.constexpr):
    """Of the product of u's or v's side, from the squares of its blocks."""
    at = entry + SIDES + SIDE * side
    begin, count = side * _number(table + LENGTHS + ADD, False) + tl.load(at + 6), tl.cdiv(tl.load(at), BLOCK)
    return tl.sqrt_rn(_sum(squares + begin, count))


@triton.jit
def _sum(numbers, count):
    total = tl.zeros([64], tl.float32)
    for start in range(0, count, 64):
        index = start + tl.arange(0, 64)
        total += tl.load(numbers + index, mask=index < count, other=0.0)
    return tl.sum(total)


@triton.jit
def _multiply(
    table, owners, addresses, dtype: tl.constexpr, vectors, products, partial, squares, eps, side, fresh,
    ALIGNED: tl.constexpr, LONG: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Parts of W v for u's side, of W^T u for v's. ``fresh``: the vector is the product before, by its length."""
    for tile in range(tl.program_id(0), _number(table + LENGTHS + side, False), tl.num_programs(0)):
        layer, entry = tile_of(table, owners, side, tile)
        own, other = entry + SIDES + SIDE * side, entry + SIDES + SIDE * (1 - side)
        length, parts, steps = tl.load(own), _number(own + 3, LONG), _number(own + 4, LONG)
        place = tile - _number(own + 2, LONG)
        block, part = place // parts, place % parts
        vector, divisor = vectors + tl.load(other + 1), 1.0
        if fresh:
            norm = _length(table, entry, squares, 1 - side, BLOCK)
            if norm >= eps:
                vector, divisor = products + tl.load(other + 1), norm
        weight, inner = pointer_at(addresses + layer, dtype, ALIGNED), _number(entry + INNER_AT, LONG)
        rows, columns = _number(entry + ROWS_AT, LONG), _number(entry + COLUMNS_AT, LONG)
        to = partial + tl.load(own + 5) + part * length
        wide = inner % 16 == 0
        begin, end = part * steps, (part + 1) * steps
        if side == 1:
            if wide:
                _add_tiles(
                    weight, vector, divisor, to, rows, columns, inner, block, begin, end,
                    BY_ROWS=True, WIDE=True, ROWS=ROWS, COLUMNS=COLUMNS,
                )  # fmt: skip
            else:
                _add_tiles(
                    weight, vector, divisor, to, rows, columns, inner, block, begin, end,
                    BY_ROWS=True, WIDE=False, ROWS=ROWS, COLUMNS=COLUMNS,
                )  # fmt: skip
        elif wide:
            _add_tiles(
                weight, vector, divisor, to, rows, columns, inner, block, begin, end,
                BY_ROWS=False, WIDE=True, ROWS=ROWS, COLUMNS=COLUMNS,
            )  # fmt: skip
        else:
            _add_tiles(
                weight, vector, divisor, to, rows, columns, inner, block, begin, end,
                BY_ROWS=False, WIDE=False, ROWS=ROWS, COLUMNS=COLUMNS,
            )  # fmt: skip


@triton.jit
def _add_tiles(
    weight, vector, divisor, to, rows, columns, inner, block, begin, end,
    BY_ROWS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of the tiles from ``begin`` to ``end`` along the rows (BY_ROWS) or the columns, the sum along them."""
    if WIDE:
        inner, columns = inner // 16 * 16, columns // 16 * 16  # as they are, and the compiler knows
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(begin, end):
        row = (step if BY_ROWS else block) * ROWS + tl.arange(0, ROWS)
        column = (block if BY_ROWS else step) * COLUMNS + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        # Column c is element c % inner of slice c // inner.
        place = column // inner * (rows * inner) + column % inner
        w = tl.load(weight + (place[None, :] + (row * inner)[:, None]), mask=mask, other=0.0).to(tl.float32)
        if BY_ROWS:
            total += w * (tl.load(vector + row, mask=row < rows, other=0.0) / divisor)[:, None]
        else:
            total += w * (tl.load(vector + column, mask=column < columns, other=0.0) / divisor)[None, :]
    if BY_ROWS:
        index = block * COLUMNS + tl.arange(0, COLUMNS)
        tl.store(to + index, tl.sum(total, 0), mask=index < columns)
    else:
        index = block * ROWS + tl.arange(0, ROWS)
        tl.store(to + index, tl.sum(total, 1), mask=index < rows)


@triton.jit
def _add_parts(
    table, owners, vectors, products, partial, squares, dots, side, BLOCK: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """The product from its parts; and of each block, the squares and the product with the vector as it is."""
    tiles = _number(table + LENGTHS + ADD + side, False)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        _, entry = tile_of(table, owners, ADD + side, tile)
        own = entry + SIDES + SIDE * side
        length, place, parts, begin = tl.load(own), tl.load(own + 1), tl.load(own + 3), tl.load(own + 5)
        index = (tile - tl.load(own + 6)) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros([GROUP, BLOCK], tl.float32)
        for start in range(0, parts, GROUP):
            part = start + tl.arange(0, GROUP)
            mask = (part < parts)[:, None] & (index < length)[None, :]
            total += tl.load(partial + begin + (part[:, None] * length + index[None, :]), mask=mask, other=0.0)
        product = tl.sum(total, 0)
        vector = tl.load(vectors + place + index, mask=index < length, other=0.0)
        tl.store(products + place + index, product, mask=index < length)
        at = side * _number(table + LENGTHS + ADD, False) + tile
        tl.store(squares + at, tl.sum(product * product))
        tl.store(dots + at, tl.sum(product * vector))


@triton.jit
def _settle(table, owners, vectors, products, squares, eps, side, BLOCK: tl.constexpr):
    """The vector is the product over its length, unless that is shorter than eps."""
    tiles = _number(table + LENGTHS + ADD + side, False)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        _, entry = tile_of(table, owners, ADD + side, tile)
        own = entry + SIDES + SIDE * side
        norm = _length(table, entry, squares, side, BLOCK)
        index = (tile - tl.load(own + 6)) * BLOCK + tl.arange(0, BLOCK)
        mask = index < tl.where(norm >= eps, tl.load(own), 0)
        at = tl.load(own + 1) + index
        tl.store(vectors + at, tl.load(products + at, mask=mask, other=0.0) / norm, mask=mask)


@triton.jit
def _sigma(table, entry, squares, dots, eps, iterating, side, BLOCK: tl.constexpr):
    """The product of the last vector, as it will be, with the last product."""
    own = entry + SIDES + SIDE * side
    begin = side * _number(table + LENGTHS + ADD, False) + tl.load(own + 6)
    norm = _length(table, entry, squares, side, BLOCK)
    return tl.where((iterating != 0) & (norm >= eps), norm, _sum(dots + begin, tl.cdiv(tl.load(own), BLOCK)))


@triton.jit
def _write_sigma(table, squares, dots, sigma, layers, eps, iterating, side, BLOCK: tl.constexpr):
    for layer in range(tl.program_id(0), layers, tl.num_programs(0)):
        entry = table + ENTRY * (layer + 1)
        tl.store(sigma + layer, _sigma(table, entry, squares, dots, eps, iterating, side, BLOCK))


@triton.jit
def _scale(
    table, owners, addresses, dtype: tl.constexpr, layers, squares, dots, eps, iterating, side,
    ALIGNED: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """W / sigma."""
    for tile in range(tl.program_id(0), _number(table + LENGTHS + SCALE, False), tl.num_programs(0)):
        layer, entry = tile_of(table, owners, SCALE, tile)
        divisor = _sigma(table, entry, squares, dots, eps, iterating, side, BLOCK)
        factor = tl.where(tl.abs(divisor) < eps, 1.0, 1.0 / divisor)
        chunk, numel = tile - _number(entry + FIRST_SCALE, LONG), _number(entry + NUMEL_AT, LONG)
        weight = pointer_at(addresses + layer, dtype, ALIGNED)
        to = pointer_at(addresses + layers + layer, dtype, ALIGNED)
        if numel % 16 == 0:
            _scale_chunk(weight, to, factor, chunk, numel // 16 * 16, CHUNK)
        else:
            _scale_chunk(weight, to, factor, chunk, numel, CHUNK)


@triton.jit
def _scale_chunk(weight, to, factor, chunk, numel, CHUNK: tl.constexpr):
    index, mask = _chunk(chunk, numel, CHUNK)
    w = tl.load(weight + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(to + index, (w * factor).to(to.dtype.element_ty), mask=mask)


@triton.jit
def _chunk(chunk, numel, CHUNK: tl.constexpr):
    index = chunk * CHUNK + tl.arange(0, CHUNK)
    return index, index < numel


@triton.jit
def _number(table, LONG: tl.constexpr):
    """From a table, in 64 bits only where addresses need them."""
    number = tl.load(table)
    return number if LONG else number.to(tl.int32)


@triton.jit(do_not_specialize=_UNSPECIALISED[:3])
def _differentiate(
    counter, first, last, table, owners, addresses, weights, grads, results, vectors, partial, sigma, grad_sigma, eps,
    ALIGNED: tl.constexpr, LONG: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Phases: the addresses; <G, W> in parts; the gradient."""
    layers = len(weights)
    if first == 0:
        note_addresses(addresses, weights)
        note_addresses(addresses + layers, grads)
        note_addresses(addresses + 2 * layers, results)
        if last > 1:
            wait_for_all(counter, tl.num_programs(0))
    for phase in range(max(first, 1), last):
        if phase == 1:
            _inner_products(
                table, owners, addresses, weights[0].dtype.element_ty, layers, partial, ALIGNED, LONG, CHUNK
            )  # fmt: skip
        else:
            _apply(
                table, owners, addresses, weights[0].dtype.element_ty, layers, vectors, partial, sigma, grad_sigma, eps,
                ALIGNED, LONG, CHUNK, PARTS,
            )  # fmt: skip
        if phase + 1 < last:
            wait_for_all(counter, (phase + 1 - first) * tl.num_programs(0))


@triton.jit
def _inner_products(
    table, owners, addresses, dtype: tl.constexpr, layers, partial,
    ALIGNED: tl.constexpr, LONG: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    for tile in range(tl.program_id(0), _number(table + LENGTHS + INNER, False), tl.num_programs(0)):
        layer, entry = tile_of(table, owners, INNER, tile)
        weight = pointer_at(addresses + layer, dtype, ALIGNED)
        grad = pointer_at(addresses + layers + layer, dtype, ALIGNED)
        numel, parts = _number(entry + NUMEL_AT, LONG), _number(entry + INNER_PARTS, LONG)
        part = tile - _number(entry + FIRST_INNER, LONG)
        if numel % 16 == 0:
            _inner_part(weight, grad, partial + tile, part, parts, numel // 16 * 16, CHUNK)
        else:
            _inner_part(weight, grad, partial + tile, part, parts, numel, CHUNK)


@triton.jit
def _inner_part(weight, grad, to, part, parts, numel, CHUNK: tl.constexpr):
    total = tl.zeros([CHUNK], tl.float32)
    for chunk in range(part, tl.cdiv(numel, CHUNK), parts):
        index, mask = _chunk(chunk, numel, CHUNK)
        g = tl.load(grad + index, mask=mask, other=0.0).to(tl.float32)
        total += g * tl.load(weight + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(to, tl.sum(total))


@triton.jit
def _apply(
    table, owners, addresses, dtype: tl.constexpr, layers, vectors, partial, sigma, grad_sigma, eps,
    ALIGNED: tl.constexpr, LONG: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    for tile in range(tl.program_id(0), _number(table + LENGTHS + APPLY, False), tl.num_programs(0)):
        layer, entry = tile_of(table, owners, APPLY, tile)
        part, parts = tl.arange(0, PARTS), tl.load(entry + INNER_PARTS)
        product = tl.sum(tl.load(partial + tl.load(entry + FIRST_INNER) + part, mask=part < parts, other=0.0))
        divisor = tl.load(sigma + layer)
        divided = tl.abs(divisor) >= eps
        safe = tl.where(divided, divisor, 1.0)
        slope = tl.load(grad_sigma + layer) - tl.where(divided, product / safe / safe, 0.0)
        chunk, numel = tile - _number(entry + FIRST_APPLY, LONG), _number(entry + NUMEL_AT, LONG)
        rows, inner, given = (
            _number(entry + ROWS_AT, LONG), _number(entry + INNER_AT, LONG), _number(entry + GIVEN_AT, LONG)
        )  # fmt: skip
        u, v = vectors + tl.load(entry + SIDES + 1), vectors + tl.load(entry + SIDES + SIDE + 1)
        grad = pointer_at(addresses + layers + layer, dtype, ALIGNED)
        to = pointer_at(addresses + 2 * layers + layer, dtype, ALIGNED)
        if numel % 16 == 0:
            _apply_chunk(grad, to, u, v, safe, slope, chunk, numel // 16 * 16, given, rows, inner, CHUNK)
        else:
            _apply_chunk(grad, to, u, v, safe, slope, chunk, numel, given, rows, inner, CHUNK)


@triton.jit
def _apply_chunk(grad, to, u, v, divisor, slope, chunk, numel, given, rows, inner, CHUNK: tl.constexpr):
    index, mask = _chunk(chunk, numel, CHUNK)
    row = index // inner
    column = row // rows * inner + index % inner
    x = tl.load(u + row % rows, mask=mask, other=0.0) * tl.load(v + column, mask=mask, other=0.0)
    g = tl.load(grad + index, mask=index < numel * given, other=0.0).to(tl.float32)
    tl.store(to + index, (g / divisor + slope * x).to(to.dtype.element_ty), mask=mask)
