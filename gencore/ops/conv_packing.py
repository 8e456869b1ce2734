"""What the CPU's convolutions make of a weight: made once, and kept while the weight stays what it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from gencore.extension import EXTENSION
from gencore.ops._library import is_watched

# (id of the weight's owner, how its elements are ordered, form, groups, columns_first, winograd) -> (weak reference to
# the owner, what the weight was when packed, packed panels).
_packed_weights: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...], Tensor]] = {}
# (what makes it, ids of the tensors) -> (weak references to them, what they were, what was made of them).
_made: dict[tuple[Any, ...], tuple[list[Any], list[Any], Any]] = {}
PIECES = 64  # of 64 bytes, of a tensor at rest: whatever changes all of it, changes some of them


class _Rest(NamedTuple):
    tensor: Any  # weak reference
    number: int  # tells this time from others
    calls: dict[Any, Any]  # of gencore.ops.conv_replay


_at_rest: dict[int, _Rest] = {}  # by the tensor's id
_rests = count(1)


class Form(Protocol):
    """What a weight is rearranged to before it is packed; hashable."""

    def filters(self, weight: Tensor) -> Tensor: ...


class Packed:
    """The panels of a weight, taken out of the cache for one call: a concurrent call of the same layer packs its own.

    A packed weight is used again while the version counter stands still *and* a hash of the weight agrees: changes
    through ``weight.data`` do not move the counter. Of a weight that was put to rest only a few bytes are hashed. A
    view of a whole tensor, such as a weight with its first two dimensions exchanged, is known by that tensor.

    ``form``: what is packed is ``form.filters(weight)``, not the weight itself.
    """

    def __init__(
        self, weight: Tensor, groups: int, columns_first: bool, winograd: int, form: Form | None = None
    ) -> None:
        self.weight, self.arguments, self.form = weight, (groups, columns_first, winograd), form
        self.owner = _owner(weight)
        self.key = (id(self.owner), weight.shape, weight.stride(), form, *self.arguments)

    def __enter__(self) -> Tensor:
        weight, ops, key = self.weight, torch.ops.gencore_c, self.key
        state = _state(weight, self.owner)
        kept = _packed_weights.pop(key, None)
        if kept is not None and kept[0]() is self.owner and kept[1] == state:
            self.kept = kept
            return kept[2]
        arguments = (weight if self.form is None else self.form.filters(weight), *self.arguments)
        size = ops.conv_packed_bytes(*arguments)
        # Calls that are noted for a weight at rest go on using the panels of what it was: it may become that again.
        reusable = kept is not None and kept[2].numel() == size and id(self.owner) not in _at_rest
        packed = kept[2] if kept is not None and reusable else weight.new_empty((size,), dtype=torch.uint8)
        ops.conv_pack(*arguments, packed)
        self.kept = (weakref.ref(self.owner, lambda _: _packed_weights.pop(key, None)), state, packed)
        return packed

    def __exit__(self, *error: object) -> None:
        _packed_weights[self.key] = self.kept


def kept(make: Callable[..., Any], *arguments: Any) -> Any:
    """``make(*arguments)``, or what it was when last asked for with these tensors as they are; nobody may change it.

    Made anew where one of them is trained, off the CPU, and under a compiler, a transform or the like.

    Args:
        make: the same object at every call.
        arguments: tensors, one at least, and what can be compared.
    """
    tensors = [t for t in arguments if isinstance(t, Tensor)]
    recording = torch.is_grad_enabled()
    if not EXTENSION.loaded or is_watched() or not all(_can_rest(t, recording) for t in tensors):
        return make(*arguments)
    key = (make, *map(id, tensors))
    state = [_state(a, a) if isinstance(a, Tensor) else a for a in arguments]
    found = _made.get(key)
    if found is not None and found[1] == state and all(r() is t for r, t in zip(found[0], tensors, strict=True)):
        return found[2]
    with torch.inference_mode(False), torch.no_grad():  # what it may be used in, later calls decide
        made = make(*arguments)
    if isinstance(made, Tensor):
        put_to_rest(_owner(made))
    _made[key] = ([weakref.ref(t, lambda _: _made.pop(key, None)) for t in tensors], state, made)
    return made


def put_to_rest(tensor: Tensor) -> None:
    """From now on trust ``tensor``'s version counter, and a few of its bytes, to tell whether it has changed. What was
    made of it so far is made anew."""
    key = id(tensor)
    _at_rest[key] = _Rest(weakref.ref(tensor, lambda _: _at_rest.pop(key, None)), next(_rests), {})


def wake(tensor: Tensor) -> None:
    """Undo :func:`put_to_rest`."""
    _at_rest.pop(id(tensor), None)


def calls_of(tensor: Tensor) -> dict[Any, Any] | None:
    """Notes that go with a tensor at rest, for as long as it rests; None where it does not."""
    rest = _at_rest.get(id(tensor))
    return None if rest is None else rest.calls


def _owner(tensor: Tensor) -> Tensor:
    """The whole tensor that ``tensor`` is a view of, or itself."""
    base = tensor._base
    return tensor if base is None or base.numel() != tensor.numel() else base


def _can_rest(tensor: Tensor, recording: bool) -> bool:
    plain = tensor.device.type == "cpu" and type(tensor) in (Tensor, Parameter)
    return plain and not (recording and tensor.requires_grad)


def _state(tensor: Tensor, owner: Tensor) -> tuple[Any, ...]:
    version = -1 if tensor.is_inference() else tensor._version
    rest = _at_rest.get(id(owner)) if version >= 0 else None
    fingerprint = torch.ops.gencore_c.fingerprint.default(tensor, PIECES if rest else 0)
    return version, fingerprint, rest and rest.number, tensor.shape, tensor.stride(), tensor.dtype
