"""Models by name: presets are frozen dataclasses, and any of their fields can be overridden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any, TypeVar

from torch import nn

from gencore.nn.layers import Layers

Model = TypeVar("Model", bound=type[nn.Module])
_PRESETS: dict[str, tuple[type[nn.Module], Any]] = {}


def register_model(**presets: Any) -> Callable[[Model], Model]:
    """Class decorator: make ``cls(config, layers)`` known under each keyword's name, with that configuration."""

    def register(cls: Model) -> Model:
        for name, config in presets.items():
            if name in _PRESETS:
                raise ValueError(f"register_model: {name!r} is already the name of a {_PRESETS[name][0].__name__}")
            _PRESETS[name] = (cls, config)
        return cls

    return register


def list_models(pattern: str = "*") -> list[str]:
    """The names that :func:`create_model` knows, sorted, those that match a shell pattern such as ``"dcgan*"``."""
    return sorted(name for name in _PRESETS if fnmatch(name, pattern))


def create_model(name: str, *, layers: str | Layers = "gencore", **overrides: Any) -> Any:
    """A freshly initialised model: an ``nn.Module`` of the class that was registered under the name.

    Args:
        name: one of :func:`list_models`.
        layers: ``"gencore"``, or ``"torch"`` for the same network on plain ``torch.nn`` with the same ``state_dict``.
        overrides: fields of the preset's configuration, such as ``channels=1``.

    Raises:
        ValueError: if there is no such model.
        TypeError: if an override is not a field of its configuration.
    """
    if name not in _PRESETS:
        close = get_close_matches(name, _PRESETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(list_models())}"
        raise ValueError(f"create_model: there is no model {name!r}; {hint}")
    cls, config = _PRESETS[name]
    known = [field.name for field in fields(config)]
    for key in overrides:
        if key not in known:
            raise TypeError(f"create_model: {name} has no option {key!r}; it has {', '.join(known)}")
    return cls(replace(config, **overrides), layers)
