"""How the memory of ``[N, C, ...]`` is laid out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of ``x`` run fastest, densely; False where contiguous fits as well."""
    return x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def workable(x: Tensor) -> Tensor:
    """``x`` itself if contiguous or channels_last, else a contiguous copy."""
    return x if is_channels_last(x) else x.contiguous()


@overload
def laid_out(tensor: Tensor, like: Tensor) -> Tensor: ...
@overload
def laid_out(tensor: Tensor | None, like: Tensor) -> Tensor | None: ...
def laid_out(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """``tensor`` with the strides of ``like``, a copy only where they differ."""
    if tensor is None or tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like).copy_(tensor)


def empty(shape: Sequence[int], like: Tensor, channels_last: bool) -> Tensor:
    """``[N, C, ...]`` of ``like``'s dtype and device, channels_last or contiguous."""
    if not channels_last:
        return like.new_empty(tuple(shape))
    return like.new_empty((shape[0], *shape[2:], shape[1])).movedim(-1, 1)
