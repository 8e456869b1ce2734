"""In which precision oracles work: autocast leaves them alone, as it leaves the kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, whose first argument is a tensor, in the precision that it states."""

    @wraps(function)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        x = args[0]
        assert isinstance(x, Tensor)
        # Where it is off, which is all that is asked for; and a meta tensor has no autocast.
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return function(*args, **kwargs)
        with torch.autocast(x.device.type, enabled=False):
            return function(*args, **kwargs)

    return plain


def in_float32(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """``function`` with its 16-bit tensors widened, its result rounded once, to the dtype of the first tensor."""

    def widened(value: Any) -> Any:
        half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
        return value.float() if half else value

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        x: Any = args[0]
        plain: Any = without_autocast(function)
        return plain(*map(widened, args), **{k: widened(v) for k, v in kwargs.items()}).to(x.dtype)

    return wrapped
