"""Philox 4x32-10 in plain PyTorch: the stream that every implementation of the random ops draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 64
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox_normal(seed: Tensor, rows: int, columns: int) -> Tensor:
    """Standard normal numbers, float32, of shape ``[rows, columns]``, on the device of ``seed``.

    A row takes ``ceil(columns / 64)`` blocks of 64 numbers; block b uses the counters 16 b + l, l = 0..15, and word w
    of counter l gives element 16 w + l. Words 0 and 1 make one Box-Muller pair, words 2 and 3 the other.

    Args:
        seed: int64, one element: the 64-bit key.

    Reference:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox); Box and Muller, 1958.
    """
    blocks_per_row = -(-columns // BLOCK)
    blocks = rows * blocks_per_row
    counter = torch.arange(blocks * 16, dtype=torch.int64, device=seed.device)
    words = philox_4x32(seed, counter)
    # float32 as the kernels compute it: the conversion rounds, the scaling and the sum do not lose more.
    u = [words[k].to(torch.float32) * 2.0**-32 + 2.0**-33 for k in (0, 2)]
    t = [_signed(words[k]).to(torch.float32) * 2.0**-31 for k in (1, 3)]
    parts = []
    for uniform, turn in zip(u, t, strict=True):
        radius, angle = (-2 * uniform.double().log()).sqrt(), math.pi * turn.double()
        parts += [radius * angle.cos(), radius * angle.sin()]
    flat = torch.stack([p.view(blocks, 16) for p in parts], dim=1).float()
    return flat.reshape(rows, blocks_per_row * BLOCK)[:, :columns].contiguous()


def philox_4x32(seed: Tensor, counter: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four 32-bit words (as int64 in 0..2^32-1) of each 64-bit counter; the counter's upper half is zero."""
    key = [seed & _MASK, (seed >> 32) & _MASK]
    c = [counter & _MASK, (counter >> 32) & _MASK, torch.zeros_like(counter), torch.zeros_like(counter)]
    for _ in range(10):
        high0, low0 = _multiply(c[0], _MULTIPLIERS[0])
        high1, low1 = _multiply(c[2], _MULTIPLIERS[1])
        c = [high1 ^ c[1] ^ key[0], low1, high0 ^ c[3] ^ key[1], low0]
        key = [(k + w) & _MASK for k, w in zip(key, _WEYL, strict=True)]
    return c[0], c[1], c[2], c[3]


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low word of the 64-bit product of 32-bit numbers, within int64: two 16-bit halves at a time."""
    low = a * (constant & 0xFFFF)
    high = a * (constant >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def _signed(word: Tensor) -> Tensor:
    return word - ((word >> 31) << 32)
