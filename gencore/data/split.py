"""Train and test."""

from __future__ import annotations

import torch
from torch import Tensor


def split(*tensors: Tensor, test: float = 0.1, seed: int = 0) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Shuffle tensors that belong together and cut them in two: ``(train, test)``.

    Args:
        tensors: any number, of equal length in their first dimension (images and labels).
        test: the share of the second part, strictly between 0 and 1; at least one sample goes to each part.
        seed: the same seed gives the same parts.

    Raises:
        ValueError: if the lengths differ, there are fewer than 2 samples, or ``test`` is not in (0, 1).
    """
    lengths = {len(t) for t in tensors}
    if len(lengths) != 1:
        raise ValueError(f"split: the tensors must have one length, got {sorted(lengths)}")
    if not 0 < test < 1:
        raise ValueError(f"split: test must be between 0 and 1, got {test}")
    (count,) = lengths
    if count < 2:
        raise ValueError(f"split: at least 2 samples are needed, got {count}")
    cut = min(max(round(count * test), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return tuple(t[order[cut:]] for t in tensors), tuple(t[order[:cut]] for t in tensors)
