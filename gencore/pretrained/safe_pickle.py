"""Reading pickled networks without running anything that is in the file.

A network saved by stylegan2-ada-pytorch or stylegan3 carries the source code of its own class, and unpickling it the
usual way executes that code. Here a short list of names is known, each bound to a function that can do nothing but
build tensors and containers; source code is dropped unread, and any other name refuses the file.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor


class RefusedPickle(pickle.UnpicklingError):
    """The file asks for something that a file of weights has no need of; nothing of it was run."""


class PickledModule:
    """What is left of a pickled ``nn.Module``: the name of its class, and its attributes."""

    def __init__(self, class_name: str, attributes: dict[str, Any]) -> None:
        self.class_name, self.attributes = class_name, attributes

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers under the names that ``nn.Module.state_dict`` would give them."""
        found: dict[str, Tensor] = {}
        for group in ("_parameters", "_buffers"):
            for name, value in self.attributes.get(group, {}).items():
                if isinstance(value, Tensor):
                    found[prefix + name] = value.detach()
        for name, child in self.attributes.get("_modules", {}).items():
            if isinstance(child, PickledModule):
                found |= child.state_dict(f"{prefix}{name}.")
        return found


def read_pickle(path: str | Path) -> Any:
    """The content of a pickle of networks: dictionaries, tensors and :class:`PickledModule`.

    Raises:
        FileNotFoundError: there is no such file.
        RefusedPickle: the file is damaged, or names anything but what such files consist of; the message says what.
    """
    with open(path, "rb") as file:
        try:
            return _Reader(file).load()
        except RefusedPickle as error:
            raise RefusedPickle(f"{path}: {error}") from None
        except Exception as error:  # a damaged file can raise anything
            raise RefusedPickle(f"{path} is no pickle of networks: {type(error).__name__}: {error}") from error


# The unpickler that is written in Python, whose instructions can be overridden; that in C sets states of anything.
_Unpickler: Any = pickle._Unpickler


class _Reader(_Unpickler):
    dispatch: ClassVar = dict(_Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise RefusedPickle(
                f"refused: it wants to use {module}.{name}, which no file of weights needs; nothing of it was run"
            )
        return _KNOWN[module, name]

    def load_build(self) -> None:
        """Drops the state of an object that weights do not need. Of any other it would set attributes: of functions and
        classes too, which the whole process shares."""
        self.stack.pop()
        if not isinstance(self.stack[-1], _Ignored):
            name = getattr(self.stack[-1], "__name__", type(self.stack[-1]).__name__)
            raise RefusedPickle(f"refused: it wants to set attributes of {name}, which no file of weights needs")

    dispatch[pickle.BUILD[0]] = load_build


class _Dict(dict[str, Any]):
    """Stands for dnnlib's EasyDict."""


class _Ignored:
    """Stands for what weights do not need: numpy's scalars and types among the constants of a layer."""

    def __init__(self, *args: object) -> None: ...


def _persistent(meta: dict[str, Any]) -> PickledModule:
    return PickledModule(str(meta["class_name"]), dict(meta["state"]))


def _storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("builtins", "set"): set,
    ("numpy", "dtype"): _Ignored,
    ("numpy.core.multiarray", "scalar"): _Ignored,
    ("numpy._core.multiarray", "scalar"): _Ignored,
}
