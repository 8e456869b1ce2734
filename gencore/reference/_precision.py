"""Autocast leaves the oracles alone, as it leaves the kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

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
        with torch.autocast(x.device.type, enabled=False):
            return function(*args, **kwargs)

    return plain
