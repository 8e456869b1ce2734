"""Argument checks with one voice: the function, the argument, what was wanted, what came.

The exception types are those that PyTorch raises for the same mistake: ``TypeError`` for a thing that is no tensor,
``RuntimeError`` for shapes, dtypes and devices that do not fit, ``ValueError`` for values out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_tensor(where: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: {name} must be a Tensor, got {type(value).__name__}")


def check_floating(where: str, name: str, x: Tensor) -> None:
    check_tensor(where, name, x)
    if not x.dtype.is_floating_point:
        raise RuntimeError(f"{where}: {name} must have a floating-point dtype, got {x.dtype}")


def check_same(where: str, name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """``x`` has the shape, dtype and device of ``like``."""
    check_tensor(where, name, x)
    check_device(where, name, x, like_name, like)
    if x.dtype != like.dtype:
        raise RuntimeError(f"{where}: {name} must have {like_name}'s dtype {like.dtype}, got {x.dtype}")
    check_shape(where, name, x, tuple(like.shape))


def check_device(where: str, name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    if x.device != like.device:
        raise RuntimeError(
            f"{where}: expected all tensors to be on the same device, but {like_name} is on {like.device} "
            f"and {name} is on {x.device}"
        )


def check_shape(where: str, name: str, x: Tensor, wanted: Sequence[int]) -> None:
    if tuple(x.shape) != tuple(wanted):
        raise RuntimeError(f"{where}: {name} must have shape {tuple(wanted)}, got {tuple(x.shape)}")


def check_classes(where: str, name: str, y: Tensor, classes: int) -> None:
    """``y`` holds integers in 0..classes-1. Looked at on the CPU alone: elsewhere that would wait for the device, whose
    embedding has a check of its own."""
    check_tensor(where, name, y)
    if y.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"{where}: {name} must be int64 or int32, got {y.dtype}")
    if y.device.type != "cpu" or y.numel() == 0 or torch.compiler.is_compiling():
        return
    for value in (y.min().item(), y.max().item()):
        if not 0 <= value < classes:
            raise IndexError(f"{where}: {name} must be classes in 0..{classes - 1}, got {value}")


def check_number(where: str, name: str, value: Any) -> None:
    """Refuses tensors, which would lose their gradient."""
    if isinstance(value, Tensor):
        raise TypeError(f"{where}: {name} must be a number, got a Tensor; multiply by it, and its gradient is kept")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What statistics and reductions are held in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
