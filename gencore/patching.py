"""Puts gencore's layers in the place of ``torch.nn``'s, in a model that somebody else wrote."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

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

    Only the class of a layer changes. Parameters, buffers, hooks, parametrisations, the ``state_dict`` and references
    that an optimiser holds stay what they are. Layers of classes derived from ``torch.nn``'s are left
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
        drop_in = _counterpart(module, DROP_INS)
        if drop_in is not None:
            module.__class__ = drop_in
            vars(module).update(_fresh(impl))
    return model


def unpatch(model: Model) -> Model:
    """Undo :func:`patch`, in place. A drop-in with an activation of its own stays: it would lose it."""
    originals = {drop_in: original for original, drop_in in DROP_INS.items()}
    for module in model.modules():
        original = _counterpart(module, originals)
        if original is not None and getattr(module, "activation", None) is None:
            module.__class__ = original
            for name in _fresh("auto"):
                vars(module).pop(name, None)
    return model


def _counterpart(module: nn.Module, table: dict[type[nn.Module], type[nn.Module]]) -> type[nn.Module] | None:
    """The class that the table has for the module's; None where it has none."""
    known = type(module)
    if not is_parametrized(module):
        return table.get(known)
    # A parametrisation has derived a class of its own for the module, which holds the parametrised properties.
    wanted = table.get(known.__bases__[0])
    if wanted is None:
        return None
    own = {name: value for name, value in vars(known).items() if name not in ("__dict__", "__weakref__", "__doc__")}
    return type(known.__name__, (wanted,), own)


def _fresh(impl: str) -> dict[str, Any]:
    """What the drop-ins' constructors set on top of ``torch.nn``'s."""
    return {"activation": None, "negative_slope": 0.01, "impl": impl}
