"""What the demo and the galleries share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torch import Tensor

from gencore import memory
from gencore.apps.pictures import save_grid


def caching() -> AbstractContextManager[None]:
    """The caching allocator for all that happens within, where it is built."""
    return memory.caching() if memory.is_available() else nullcontext()


def grid(images: Tensor, path: Path, *, columns: int) -> Path:
    """Write the images as one picture; the path again."""
    save_grid(images, path, columns=columns)
    return path
