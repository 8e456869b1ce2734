"""One launch that works on a list of tensors, in phases.

In each phase the programs deal the tiles of all tensors out among themselves, and no program reads what another one
writes in the same phase. Between two phases every program waits for all others, which is safe because the launch is
cooperative: the driver starts all programs together or refuses, and there are as many as the GPU has processors, one of
which always holds a program of eight warps. The interpreter runs programs one after another, where waiting would never
end; there each phase is a launch of its own, and its memory checks show that a phase needs nothing of the same phase.

What the programs must know of the layers lies in tables: the geometry in one that is built once a network, and the
addresses, which the first phase takes from the launch's own arguments. So nothing is copied to the GPU in a call, and a
captured graph stays valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import INT32_LIMIT, on_device

# A tile of a product, how many of them a program adds up, and into how many parts at most a sum is cut.
ROWS, COLUMNS, _STEPS, _MOST_PARTS = 16, 256, 8, 64
BLOCK = 512  # elements of a vector
CHUNK = 4096  # elements of a weight
MOST_INNER = 512  # parts of <G, W>
_WARPS, _FEW_PROGRAMS = 8, 3  # the latter: what the interpreter runs
_MOST_LAYERS = 128  # of one launch: three addresses of each stay within the 4 KiB of arguments that any GPU takes

# The lists of tiles that phases go through. The table's head has their beginnings in `owners`, then their lengths.
_LISTS = 7
# The products of u's side and of v's come first, then:
ADD = tl.constexpr(2)  # + side: 0 for u, 1 for v
SCALE, INNER, APPLY = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
LENGTHS = tl.constexpr(_LISTS)
# A layer's entry, after the head; first: the first of its tiles in a list.
ENTRY = tl.constexpr(24)
ROWS_AT, COLUMNS_AT, INNER_AT, NUMEL_AT, GIVEN_AT = (tl.constexpr(i) for i in range(5))
FIRST_SCALE, FIRST_INNER, INNER_PARTS, FIRST_APPLY = (tl.constexpr(i) for i in range(5, 9))
# From here on u's, then v's: length, where in `vectors`, first product, parts, steps a part, where in `partial`, first
# block to add up.
SIDES, SIDE = tl.constexpr(9), tl.constexpr(7)


def launches_of(
    weights: Sequence[Tensor], vectors: Tensor, dims: Sequence[int], known: Sequence[bool]
) -> Iterator[tuple[slice, Plan, Tensor, Tensor]]:
    """The layers of each launch, their plan, their u and v, and room for three addresses of each."""
    end = 0
    for first in range(0, len(weights), _MOST_LAYERS):
        layers = slice(first, first + _MOST_LAYERS)
        shapes = tuple(
            (w.shape[:dim].numel(), w.shape[dim], w.shape[dim + 1 :].numel())
            for w, dim in zip(weights[layers], dims[layers], strict=True)
        )
        begin, end = end, end + sum(rows + outer * inner for outer, rows, inner in shapes)
        addresses = torch.empty(3 * len(shapes), dtype=torch.int64, device=vectors.device)
        yield layers, plan_of(shapes, tuple(known[layers]), str(vectors.device)), vectors[begin:end], addresses


def run(kernel: Any, phases: int, plan: Plan, *arguments: Any, **constants: Any) -> None:
    """All phases, in one launch where the programs run side by side."""
    table = plan.table
    counter = torch.zeros(1, dtype=torch.int32, device=table.device)
    aligned = all(x.data_ptr() % 16 == 0 for tensors in arguments if isinstance(tensors, tuple) for x in tensors)
    constants |= {"ALIGNED": aligned, "LONG": plan.long, "CHUNK": CHUNK, "num_warps": _WARPS}
    with on_device(table):
        if triton.knobs.runtime.interpret:
            for phase in range(phases):
                kernel[(_FEW_PROGRAMS,)](counter, phase, phase + 1, table, plan.owners, *arguments, **constants)
        else:
            processors = torch.cuda.get_device_properties(table.device).multi_processor_count if table.is_cuda else 1
            constants["launch_cooperative_grid"] = True
            kernel[(processors,)](counter, 0, phases, table, plan.owners, *arguments, **constants)


class Plan(NamedTuple):
    table: Tensor  # int64: head and entries
    owners: Tensor  # int32: the layer of each tile, list after list
    partial: int  # numbers of working memory
    blocks: int
    inner_parts: int
    long: bool
    columns: int  # of a tile


@lru_cache(maxsize=64)
def plan_of(shapes: tuple[tuple[int, int, int], ...], given: tuple[bool, ...], device: str) -> Plan:
    """Of weights [outer, rows, inner]; ``given``: whose W / sigma is written, or has a gradient."""
    owners: list[list[int]] = [[] for _ in range(_LISTS)]
    long = max(outer * rows * inner for outer, rows, inner in shapes) >= INT32_LIMIT
    wide = COLUMNS // 2 if long else COLUMNS  # offsets of 64 bits take twice the registers
    entries, place, partial = [], 0, 0
    for layer, ((outer, rows, inner), known) in enumerate(zip(shapes, given, strict=True)):
        columns, numel = outer * inner, outer * rows * inner
        chunks = triton.cdiv(numel, CHUNK)
        inner_parts = min(chunks, MOST_INNER) if known else 0
        entry = [rows, columns, inner, numel, int(known)]
        entry += [len(owners[SCALE]), len(owners[INNER]), inner_parts, len(owners[APPLY])]
        owners[SCALE] += [layer] * (chunks if known else 0)
        owners[INNER] += [layer] * inner_parts
        owners[APPLY] += [layer] * chunks
        for side, length, summed, block, step in (0, rows, columns, ROWS, wide), (1, columns, rows, wide, ROWS):
            steps = triton.cdiv(summed, step)
            parts = max(min(triton.cdiv(steps, _STEPS), _MOST_PARTS), 1)
            own = [length, place, len(owners[side]), parts, triton.cdiv(steps, parts), partial, len(owners[2 + side])]
            entry += own
            owners[side] += [layer] * (triton.cdiv(length, block) * parts)
            owners[2 + side] += [layer] * triton.cdiv(length, BLOCK)
            place += length
            partial += parts * length
        entries.append(entry + [0] * (ENTRY.value - len(entry)))
    lengths = [len(tiles) for tiles in owners]
    head = [*accumulate([0, *lengths[:-1]]), *lengths]
    table = torch.tensor([head + [0] * (ENTRY.value - len(head)), *entries], dtype=torch.int64)
    flat = torch.tensor([layer for tiles in owners for layer in tiles], dtype=torch.int32)
    return Plan(table.to(device), flat.to(device), partial, lengths[2] + lengths[3], lengths[5], long, wide)


# --- in a kernel ---------------------------------------------------------------------------------------------------


@triton.jit
def note_addresses(addresses, tensors):
    if tl.program_id(0) == 0:
        for i in tl.static_range(len(tensors)):
            tl.store(addresses + i, tensors[i].to(tl.int64))


@triton.jit
def wait_for_all(counter, arrivals):
    # The barriers of the block make what all its threads have stored part of what its one atomic thread releases, and
    # what that thread acquires visible to them all.
    tl.debug_barrier()
    arrived = tl.atomic_add(counter, 1, sem="acq_rel") + 1
    while arrived < arrivals:
        arrived = tl.atomic_add(counter, 0, sem="acq_rel")
    tl.debug_barrier()


@triton.jit
def tile_of(table, owners, LIST, tile):
    """The layer that owns the tile, and its entry."""
    layer = tl.load(owners + tl.load(table + LIST) + tile)
    return layer, table + ENTRY * (layer + 1)


@triton.jit
def pointer_at(addresses, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(addresses).to(tl.pointer_type(dtype))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer
