"""A caching allocator for CPU tensors: memory that a training step has used is kept for the next one.

On Linux a large tensor is usually fresh memory from the kernel, zeroed page by page when it is first written. That
costs more than most element-wise operations that then run on it, and each step pays it again for every activation.
With :func:`enable`, torch's CPU tensors come from a cache of blocks in size classes, the larger ones on huge pages, and
the next step takes the same warm blocks again. It serves every tensor of the process, whoever makes it, and is off
until it is asked for::

    import gencore

    gencore.memory.enable()  # at most a quarter of the machine's memory is cached
    train()
    print(gencore.memory.stats())
    gencore.memory.disable()  # tensors that are alive stay valid

    with gencore.memory.caching(limit=2 << 30):  # for the length of a block, at most 2 GiB cached
        train()

All sizes are in bytes. Results of operations do not change by it; only addresses do.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from gencore.extension import MEMORY_EXTENSION, MEMORY_MODULE

__all__ = [
    "MemoryStats",
    "caching",
    "disable",
    "empty_cache",
    "enable",
    "is_available",
    "is_enabled",
    "reset_peak_stats",
    "set_limit",
    "stats",
]


def enable(limit: int | None = None, *, poison: bool = False) -> None:
    """Let the caching allocator serve every CPU tensor that is made from now on.

    Tensors that are alive keep the memory they have and are freed as they would have been. Calling it again sets
    ``limit`` and ``poison`` anew. Call it before threads that make tensors are running: torch reads its current
    allocator without a lock.

    Args:
        limit: the most bytes to keep cached, not counting those that tensors use; what lay longest is given back first.
            0 caches nothing. Default: a quarter of the memory of the machine, or of the container if that has less.
        poison: fill every new buffer with bytes 0xFF (NaN in each floating-point type, -1 in signed integers), so that
            reading memory that nobody wrote shows. For tests; it costs a pass over the memory.

    Raises:
        RuntimeError: the extension is not built or does not load (the message says why, and the fix), or another
            library has installed a CPU allocator with a higher priority.
        TypeError, ValueError: ``limit`` is not an integer, or is negative.
    """
    limit = _checked_limit(limit)
    module = _module()
    module.set_limit(limit)
    if not module.install():
        raise RuntimeError(
            "gencore.memory.enable(): another CPU allocator was registered with a higher priority; "
            "remove that one, or go without gencore.memory"
        )
    module.set_poison(bool(poison))


def disable() -> None:
    """Give torch its former CPU allocator back and empty the cache. Does nothing where it is not enabled.

    Tensors made in the meantime stay valid; their memory goes back to the system when they are freed.
    """
    if MEMORY_MODULE is not None:
        MEMORY_MODULE.uninstall()


@contextmanager
def caching(limit: int | None = None, *, poison: bool = False) -> Iterator[None]:
    """:func:`enable` for the length of a ``with`` block; afterwards the state before it is restored.

    Args and errors are those of :func:`enable`. The state is that of the process, not of the thread.
    """
    module = _module()
    before = (module.limit(), module.poison()) if module.installed() else None
    enable(limit, poison=poison)
    try:
        yield
    finally:
        if before is None:
            disable()
        else:
            enable(before[0], poison=before[1])


def is_available() -> bool:
    """Whether the extension is built and loads; ``gencore.env()`` says why not."""
    return MEMORY_MODULE is not None


def is_enabled() -> bool:
    """Whether new CPU tensors come from the caching allocator."""
    return MEMORY_MODULE is not None and MEMORY_MODULE.installed()


def set_limit(limit: int | None) -> None:
    """Change the most bytes to keep cached, as in :func:`enable`; what is over it is given back now."""
    _module().set_limit(_checked_limit(limit))


def empty_cache() -> int:
    """Give every cached block back to the system; returns the number of bytes. Tensors are not touched."""
    return _module().empty_cache()


def reset_peak_stats() -> None:
    """Let the peaks of :func:`stats` start anew from the current values."""
    _module().reset_peaks()


@dataclass(frozen=True)
class MemoryStats:
    """Counters of the process since its start. Tensors of at most 960 bytes are malloc's and are not counted."""

    enabled: bool
    limit: int
    """The most bytes to keep cached."""
    allocated_bytes: int
    """Asked for by tensors that are alive."""
    peak_allocated_bytes: int
    """The most of it since the start or :func:`reset_peak_stats`."""
    reserved_bytes: int
    """Held from the system: by live tensors (with rounding to size classes, at most 1/8) and by the cache."""
    peak_reserved_bytes: int
    """The most of it since the start or :func:`reset_peak_stats`."""
    cached_bytes: int
    """The part of ``reserved_bytes`` that waits for reuse."""
    cached_blocks: int
    """How many blocks these are."""
    hits: int
    """Requests served from the cache."""
    misses: int
    """Requests that went to the system."""
    system_allocations: int
    """Blocks taken from the system."""
    system_frees: int
    """Blocks given back to the system."""
    evictions: int
    """Those of them given back because ``limit`` was exceeded."""

    def __str__(self) -> str:
        rows = asdict(self)
        width = max(map(len, rows))
        return "\n".join(
            f"{name:<{width}}  {value / 2**20:.1f} MiB"
            if name == "limit" or name.endswith("_bytes")
            else f"{name:<{width}}  {value}"
            for name, value in rows.items()
        )


def stats() -> MemoryStats:
    """What the allocator holds and has done. Raises RuntimeError where the extension is not there."""
    module = _module()
    return MemoryStats(enabled=module.installed(), limit=module.limit(), **module.stats())


def _module() -> ModuleType:
    if MEMORY_MODULE is None:
        raise RuntimeError(
            f"gencore.memory needs its C++ extension: {MEMORY_EXTENSION.reason}. To mend it, {MEMORY_EXTENSION.fix}"
        )
    return MEMORY_MODULE


def _checked_limit(limit: int | None) -> int:
    if limit is None:
        return _total_memory() // 4
    try:
        limit = operator.index(limit)
    except TypeError:
        raise TypeError(f"limit must be an integer number of bytes or None, got {type(limit).__name__}") from None
    if limit < 0:
        raise ValueError(f"limit must be at least 0 bytes, got {limit}")
    return min(limit, 2**62)


def _total_memory() -> int:
    """Bytes of memory of this machine, or of the control group (container) if that is given less."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            sizes.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
    return min(sizes)
