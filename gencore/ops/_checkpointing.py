"""What a forward must find again when activation checkpointing repeats it.

``torch.utils.checkpoint`` runs a function a second time inside the backward. State that the first time moved (u and v
of spectral norm) has to be for the second time what it was for the first, however many other forwards came in between.
PyTorch tells the function nothing about this, but what it keeps of a checkpointed forward can be found, and is the same
object both times: for ``use_reentrant=False`` the frame that its hooks for saved tensors refer to, otherwise (and for
any other :class:`torch.autograd.Function` that repeats a forward) the ``ctx``. Notes are kept for as long as these are.
"""

from __future__ import annotations

import sys
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.autograd.function import FunctionCtx


class _Notes:
    """Of one checkpointed forward."""

    def __init__(self) -> None:
        self.steps: list[Any] = []  # in the order in which they were taken
        self.by_key: dict[Any, Any] = {}
        self.repetition: object = None  # the one that is reading the steps
        self.position = 0


_NOTES: WeakKeyDictionary[Any, _Notes] = WeakKeyDictionary()


def note_step(regions: list[Any], value: Any) -> None:
    """Keep a value for the repetition of these forwards (:func:`regions_under_way`), which asks in the same order."""
    for region in regions:
        _NOTES.setdefault(region, _Notes()).steps.append(value)


def note_for(region: Any, key: Any, value: Any) -> None:
    """Keep a value under a key, for the repetition of this forward."""
    _NOTES.setdefault(region, _Notes()).by_key[key] = value


def is_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def repeated_step(what: str) -> Any:
    """The next of the values of the forward that is being repeated; None where none is.

    Raises:
        RuntimeError: the repetition asks for more than the forward noted.
    """
    region, repetition = _repeated()
    notes = _NOTES.get(region) if region is not None else None
    if notes is None or not notes.steps:
        return None
    if notes.repetition != repetition:
        notes.repetition, notes.position = repetition, 0
    if notes.position == len(notes.steps):
        raise RuntimeError(
            f"{what}: activation checkpointing repeats a forward otherwise than it ran: more calls than the first time"
        )
    notes.position += 1
    return notes.steps[notes.position - 1]


def repeated_value(key: Any) -> Any:
    """What the forward that is being repeated noted under the key; None where it noted nothing or none is."""
    region, _ = _repeated()
    notes = _NOTES.get(region) if region is not None else None
    return None if notes is None else notes.by_key.get(key)


def regions_under_way(grad_before: bool = True) -> list[Any]:
    """The checkpointed forwards, one inside another, that are running for the first time.

    ``grad_before``: whether gradients were recorded when the value to be noted came about. Otherwise no function that
    has begun since will be repeated, and the search for such, along Python's stack, is left out.
    """
    found: list[Any] = []
    for frame, repetition in _frames():
        found = [] if repetition is not None else [*found, frame]
    # Inside the forward of an autograd function no gradients are recorded.
    return [*found, *_contexts()] if grad_before and not torch.is_grad_enabled() else found


def is_kept_by_frame(region: Any) -> bool:
    """Whether the repetition is only read (``use_reentrant=False``), not differentiated."""
    return not isinstance(region, FunctionCtx)


def _repeated() -> tuple[Any, object]:
    """The checkpointed forward that is being repeated, and what tells this repetition from others; None, None."""
    for frame, repetition in reversed(_frames()):
        if repetition is not None:
            return frame, repetition
    task = torch._C._current_graph_task_id()
    node = torch._C._current_autograd_node() if task != -1 else None
    return (node, task) if isinstance(node, FunctionCtx) else (None, None)


def _frames() -> list[tuple[Any, object]]:
    """Frames of ``use_reentrant=False``, outermost first, each with its repetition, None the first time."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None:
        return []
    # Only the uppermost hooks can be seen.
    torch._C._autograd._pop_saved_tensors_default_hooks()
    try:
        found = _frames()
    finally:
        torch._C._autograd._push_saved_tensors_default_hooks(*hooks)
    pack = getattr(hooks[0], "_torchdynamo_orig_callable", hooks[0])
    if getattr(pack, "__module__", None) == "torch.utils.checkpoint":
        values = dict(zip(pack.__code__.co_freevars, (c.cell_contents for c in pack.__closure__ or ()), strict=True))
        if "frame" in values:
            found.append((values["frame"], None))
        elif "target_frame_ref" in values:
            found.append((values["target_frame_ref"](), pack))
    return found


def _contexts() -> list[Any]:
    """The ``ctx`` of each :class:`torch.autograd.Function` whose forward is running, outermost first."""
    found: list[Any] = []
    frame = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name in ("backward", "unpack_hook"):
            break
        # Modules have a forward too, and it costs a microsecond to see the variables of one.
        if code.co_name == "forward" and code.co_argcount and code.co_varnames[0] != "self":
            first = frame.f_locals.get(code.co_varnames[0])
            if isinstance(first, FunctionCtx):
                found.append(first)
        frame = frame.f_back  # type: ignore[assignment]
    return found[::-1]
