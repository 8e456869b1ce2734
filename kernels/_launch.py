"""What the launchers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.driver import driver

# Offsets at or above this need 64 bits; the margin covers the masked lanes past the end.
INT32_LIMIT = 2**31 - 2**22
# Programs that keep the largest GPUs busy. A fixed number, not the count of this GPU's processors: the split of a
# reduction, and so the bits of its result, must not change from one model of a GPU to the next.
ENOUGH_PROGRAMS = 1024


def needs_64_bits(*tensors: Tensor | None) -> bool:
    """Whether an offset into one of these, of any strides, may not fit 32 bits."""
    given = [x for x in tensors if x is not None]
    reach = (sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) for x in given)
    return max(*reach, *(x.numel() for x in given)) >= INT32_LIMIT


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Launch on the device of ``x``, whatever the current one is."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def tuned(
    configs: Sequence[triton.Config], fitting: Callable[..., list[triton.Config]], key: Sequence[str]
) -> Callable[[Any], Any]:
    """Decorator: time the ``fitting`` of the ``configs`` once for each value of ``key``, keep the best on disk, use it.

    The interpreter, which has no clock worth reading, uses the first.

    Args:
        fitting: takes the configurations and the named arguments of the launch.
        key: names of arguments of the kernel. The dtypes of its tensors belong to the key anyhow.
    """
    known = list(configs)[:1] if triton.knobs.runtime.interpret else list(configs)
    prune = {"early_config_prune": fitting}
    tune: Callable[[Any], Any] = triton.autotune(known, key=list(key), prune_configs_by=prune, cache_results=True)
    return tune


def lanes() -> int:
    """Threads of a warp on the current device: 64 on AMD's data-centre GPUs, 32 on NVIDIA's."""
    return 32 if triton.knobs.runtime.interpret else _lanes_of(driver.active)


@lru_cache
def _lanes_of(active: Any) -> int:
    return int(active.get_current_target().warp_size)
