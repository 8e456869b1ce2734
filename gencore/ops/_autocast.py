"""What PyTorch's autocast does to the ops on its lower-precision list, for ops of our own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CAST = (torch.float32, torch.bfloat16, torch.float16)  # float64 is left alone, as PyTorch leaves it


def autocast(*arguments: Any) -> tuple[Any, ...]:
    """``arguments`` with every floating-point tensor on the first one's device in the dtype that autocast asks for.

    Unchanged outside an autocast region; what is no tensor passes through, for the checks to find.
    """
    first = arguments[0]
    if not isinstance(first, Tensor):
        return arguments
    device = first.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return arguments
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and x.dtype in _CAST and x.device.type == device else x for x in arguments
    )
