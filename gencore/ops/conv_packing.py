"""What the CPU's convolutions make of a weight: made once, and kept while the weight stays what it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gencore.extension import EXTENSION
from gencore.ops._library import is_watched

# (id of the weight's owner, how its elements are ordered, groups, columns_first, winograd) -> (weak reference to the
# owner, what the weight was when packed, packed panels).
_packed_weights: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...], Tensor]] = {}
# id of a weight -> (weak reference to it, what it was, what was made of it).
_made: dict[int, tuple[Any, tuple[Any, ...], Tensor]] = {}


class Packed:
    """The panels of a weight, taken out of the cache for one call: a concurrent call of the same layer packs its own.

    A packed weight is used again while the version counter stands still *and* a hash of the weight agrees: changes
    through ``weight.data`` do not move the counter. A view of a whole tensor, such as a weight with its first two
    dimensions exchanged, is known by that tensor.
    """

    def __init__(self, weight: Tensor, groups: int, columns_first: bool, winograd: int) -> None:
        base = weight._base
        self.weight, self.arguments = weight, (groups, columns_first, winograd)
        self.owner = weight if base is None or base.numel() != weight.numel() else base
        self.key = (id(self.owner), weight.shape, weight.stride(), *self.arguments)

    def __enter__(self) -> Tensor:
        weight, ops, key = self.weight, torch.ops.gencore_c, self.key
        state = _state(weight)
        kept = _packed_weights.pop(key, None)
        if kept is not None and kept[0]() is self.owner and kept[1] == state:
            self.kept = kept
            return kept[2]
        arguments = (weight, *self.arguments)
        size = ops.conv_packed_bytes(*arguments)
        reusable = kept is not None and kept[2].numel() == size
        packed = kept[2] if kept is not None and reusable else weight.new_empty((size,), dtype=torch.uint8)
        ops.conv_pack(*arguments, packed)
        self.kept = (weakref.ref(self.owner, lambda _: _packed_weights.pop(key, None)), state, packed)
        return packed

    def __exit__(self, *error: object) -> None:
        _packed_weights[self.key] = self.kept


def kept(weight: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """``make(weight)``, or what it was when last asked for with the weight as it is; nobody may change it.

    Made anew where it is trained, off the CPU, and under a compiler, a transform or the like.
    """
    trained = torch.is_grad_enabled() and weight.requires_grad
    plain = weight.device.type == "cpu" and EXTENSION.loaded and type(weight) in (Tensor, Parameter)
    if is_watched() or trained or not plain:
        return make(weight)
    key = id(weight)
    found, state = _made.get(key), (*_state(weight), make, torch.is_inference_mode_enabled())
    if found is not None and found[0]() is weight and found[1] == state:
        return found[2]
    made = make(weight)
    _made[key] = (weakref.ref(weight, lambda _: _made.pop(key, None)), state, made)
    return made


def _state(weight: Tensor) -> tuple[Any, ...]:
    version = -1 if weight.is_inference() else weight._version
    return version, torch.ops.gencore_c.fingerprint(weight), weight.shape, weight.stride(), weight.dtype
