"""Weights as the CPU's convolutions read them: packed once, and kept while they stay what they were."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

# (id of the weight, groups, columns_first, winograd) -> (weak reference to it, what it was when packed, packed panels).
_packed_weights: dict[tuple[int, int, bool, int], tuple[Any, tuple[Any, ...], Tensor]] = {}


class Packed:
    """The panels of a weight, taken out of the cache for one call: a concurrent call of the same layer packs its own.

    A packed weight is used again while the version counter stands still *and* a hash of the weight agrees: changes
    through ``weight.data`` do not move the counter.
    """

    def __init__(self, weight: Tensor, groups: int, columns_first: bool, winograd: int) -> None:
        self.weight, self.key = weight, (id(weight), groups, columns_first, winograd)

    def __enter__(self) -> Tensor:
        weight, ops = self.weight, torch.ops.gencore_c
        version = -1 if weight.is_inference() else weight._version
        state = (version, ops.fingerprint(weight), weight.shape, weight.stride(), weight.dtype)
        kept = _packed_weights.pop(self.key, None)
        if kept is not None and kept[0]() is weight and kept[1] == state:
            self.kept = kept
            return kept[2]
        arguments = (weight, *self.key[1:])
        size = ops.conv_packed_bytes(*arguments)
        reusable = kept is not None and kept[2].numel() == size
        packed = kept[2] if kept is not None and reusable else weight.new_empty((size,), dtype=torch.uint8)
        ops.conv_pack(*arguments, packed)
        key = self.key
        self.kept = (weakref.ref(weight, lambda _: _packed_weights.pop(key, None)), state, packed)
        return packed

    def __exit__(self, *error: object) -> None:
        _packed_weights[self.key] = self.kept
