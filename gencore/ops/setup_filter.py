"""The taps of the filters that images are up- and down-sampled by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gencore import reference


def setup_filter(
    f: Tensor | Sequence[float] | Sequence[Sequence[float]] | float | None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1.0,
    separable: bool | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The taps of a filter, as the functions here take them.

    Args:
        f: numbers, one row of them or a matrix, such as ``[1, 3, 3, 1]``; None: a single 1.
        normalize: scale the taps to a sum of 1.
        flip_filter: turn them round.
        gain: of the filter on an image, whether it is kept 1-D or not.
        separable: keep one row 1-D, to be applied along both directions; None: from 8 taps on. A shorter row becomes
            its outer product (which the CPU kernels find to be one, and run as two passes all the same).

    Returns:
        ``[taps]`` or ``[h, w]``, float32.

    Raises:
        RuntimeError: f is not finite and real, is empty, has rank 3, is a matrix where ``separable``, or sums to 0
            where ``normalize``.
    """
    given = torch.as_tensor(1.0 if f is None else f)
    if given.is_complex() or not (given.is_meta or given.isfinite().all()):
        raise RuntimeError(f"setup_filter: f must be finite real numbers, got {given.tolist()}")
    taps = given.to(torch.float32)
    if taps.dim() > 2 or taps.numel() == 0:
        raise RuntimeError(f"setup_filter: f must be a number, a row or a matrix, got shape {tuple(taps.shape)}")
    if separable and taps.dim() == 2:
        raise RuntimeError(f"setup_filter: a separable f must be one row, got shape {tuple(taps.shape)}")
    if normalize and not taps.is_meta and taps.sum() == 0:
        raise RuntimeError(f"setup_filter: f must not sum to 0 where normalize=True, got {taps.tolist()}")
    return reference.setup_filter(f, normalize, flip_filter, gain, separable, device)
