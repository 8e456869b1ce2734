"""Puts gencore's layers in the place of ``torch.nn``'s, in a model that somebody else wrote."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

import gencore.nn
from gencore.dispatch import check_name

Model = TypeVar("Model", bound=nn.Module)

# From a layer of torch.nn to its drop-in, which is a subclass of it and keeps no state of its own.
DROP_INS: dict[type[nn.Module], type[nn.Module]] = {
    getattr(torch.nn, name): getattr(gencore.nn, name)
    for name in gencore.nn.__all__
    if issubclass(getattr(gencore.nn, name), getattr(torch.nn, name, ()))
}


def patch(model: Model, *, impl: str = "auto") -> Model:
    """Make every layer of ``model`` that gencore has a drop-in for that drop-in; in place.

    Only the class of a layer changes. Parameters, buffers, hooks, parametrisations of other modules, the ``state_dict``
    and references that an optimiser holds stay what they are. Layers of classes derived from ``torch.nn``'s are left
    alone: what they do on top is not known.

    Args:
        model: any module; a single layer too.
        impl: which implementation the layers run; see :mod:`gencore.dispatch`.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: if ``impl`` is not a known name.
    """
    check_name(impl, "patch")
    for module in model.modules():
        drop_in = DROP_INS.get(type(module))
        if drop_in is not None:
            module.__class__ = drop_in
            vars(module).update(_fresh(impl))
    return model


def unpatch(model: Model) -> Model:
    """Undo :func:`patch`, in place. A drop-in with an activation of its own stays: it would lose it."""
    originals = {drop_in: original for original, drop_in in DROP_INS.items()}
    for module in model.modules():
        original = originals.get(type(module))
        if original is not None and getattr(module, "activation", None) is None:
            module.__class__ = original
            for name in _fresh("auto"):
                vars(module).pop(name, None)
    return model


def _fresh(impl: str) -> dict[str, Any]:
    """What the drop-ins' constructors set on top of ``torch.nn``'s."""
    return {"activation": None, "negative_slope": 0.01, "impl": impl}
