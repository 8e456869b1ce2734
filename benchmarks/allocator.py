"""The memory allocator under both sides of every comparison, which is always the same one.

On Linux the first touch of fresh memory costs more than most element-wise arithmetic, so the allocator decides many
comparisons between PyTorch and PyTorch. Therefore:

* ``stock``    glibc as it comes: large blocks go back to the system when freed, and are touched anew each time.
* ``tuned``    glibc told by its environment to keep them.
* ``gencore``  the caching allocator of :mod:`gencore.memory`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence

CHOICES = ("stock", "tuned", "gencore")
TUNING = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}


def available() -> tuple[str, ...]:
    """The allocators that can be chosen in this installation."""
    return CHOICES if _have_gencore_memory() else CHOICES[:2]


def default() -> str:
    return available()[-1]


def environment(name: str) -> dict[str, str]:
    """The environment of a process that is to run with allocator ``name``."""
    untuned = {k: v for k, v in os.environ.items() if k not in TUNING}
    return {**untuned, **TUNING} if name == "tuned" else untuned


def use(name: str, arguments: Sequence[str]) -> None:
    """Run on with allocator ``name``: where glibc must be told before it starts, this process starts itself again.

    Args:
        arguments: the command line after ``python -m benchmarks``.

    Raises:
        RuntimeError: ``"gencore"`` was asked for, and this installation does not have it.
    """
    if name == "gencore" and not _have_gencore_memory():
        raise RuntimeError("--allocator gencore: gencore.memory is not built here; run `make build`, or use tuned")
    tuned = all(os.environ.get(k) == v for k, v in TUNING.items())
    if (name == "tuned") != tuned:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *arguments], environment(name))
    if name == "gencore":
        import gencore.memory

        gencore.memory.enable()


def current() -> str:
    """The allocator that this process runs with."""
    if _have_gencore_memory():
        import gencore.memory

        if gencore.memory.is_enabled():
            return "gencore"
    return "tuned" if all(os.environ.get(k) == v for k, v in TUNING.items()) else "stock"


def _have_gencore_memory() -> bool:
    if importlib.util.find_spec("gencore.memory") is None:
        return False
    import gencore.memory

    return gencore.memory.is_available()
