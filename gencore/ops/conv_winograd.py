"""Which convolutions the CPU does by minimal filtering (``csrc/cpu/conv_winograd.h``).

3x3 at strides of 1 and 2, and 4x4 at a stride of 2 with a padding of 1. The rounding error is that of direct sums, so
nothing but the shape decides. The limits were measured beside the direct sums on two cores with AVX-512.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_FEW_CHANNELS = 16
_BLOCK = 64  # columns of a weight gradient come in such blocks
# Of convolutions at a stride of 2.
_FEW_PIXELS = 1024
_SMALL_IMAGE = 4  # most of its products are with padding, which direct sums leave out

Size = Sequence[int]


def winograd_stride(
    x: Tensor,
    weight: Tensor,
    stride: Size,
    padding: Size,
    dilation: Size,
    out_size: Size,
    groups: int,
    transposed: bool,
) -> int:
    """The stride of a convolution, transposed or not, that is done so; 0: it is not."""
    if x.dtype != torch.float32 or groups != 1 or min(weight.shape[:2]) < _FEW_CHANNELS:
        return 0
    if not _has_a_scheme(weight.shape[2:], stride, padding, dilation, transposed):
        return 0
    if stride[0] == 2 and (min(out_size) < _SMALL_IMAGE or x.shape[0] * prod(out_size) < _FEW_PIXELS):
        return 0
    return stride[0]


def weight_gradient_by_winograd(
    dense: Tensor, gathered: Tensor, kernel: Size, stride: Size, padding: Size, dilation: Size, groups: int
) -> bool:
    """Of a weight gradient, of a transposed convolution or not."""
    channels = dense.shape[1]
    return (
        dense.dtype == torch.float32
        and groups == 1
        and gathered.shape[1] >= _FEW_CHANNELS
        and 4 * channels >= 3 * _BLOCK * -(-channels // _BLOCK)
        and _has_a_scheme(kernel, stride, padding, dilation, False)
    )


def _has_a_scheme(kernel: Size, stride: Size, padding: Size, dilation: Size, transposed: bool) -> bool:
    kernel, stride, padding = tuple(kernel), tuple(stride), tuple(padding)
    if tuple(dilation) != (1, 1):
        return False
    if kernel == (3, 3):
        return stride == (1, 1) or (stride == (2, 2) and (not transposed or padding == (0, 0)))
    return (kernel, stride, padding) == ((4, 4), (2, 2), (1, 1))
