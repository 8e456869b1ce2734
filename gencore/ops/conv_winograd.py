"""Which convolutions the CPU does by minimal filtering (``csrc/cpu/conv_winograd.h``).

3x3 at strides of 1 and 2, and 4x4 at a stride of 2 with a padding of 1; in three dimensions, those whose last two are
such. The rounding error is that of direct sums, so
nothing but the shape decides. The limits were measured beside the direct sums on two cores with AVX-512.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_FEW_CHANNELS = 16
_BLOCK = 64  # columns of a weight gradient come in such blocks
# At a stride of 2, by the filter's side and whether it is transposed: the least side of the output and its least number
# of pixels. Small images meet much padding, which direct sums leave out; few pixels are not worth larger weights.
_LEAST = {(4, False): (4, 1024), (4, True): (4, 1024), (3, False): (8, 4096), (3, True): (64, 4096)}
_FEW_CHANNELS_STRIDED_3 = 128  # for the weight gradient

_MOST_DEPTH = 8  # taps along the depth

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
    side, pixels = _LEAST[weight.shape[-1], transposed] if stride[-1] == 2 else (1, 1)
    return stride[-1] if min(out_size[-2:]) >= side and x.shape[0] * prod(out_size) >= pixels else 0


def weight_gradient_by_winograd(
    dense: Tensor, gathered: Tensor, kernel: Size, stride: Size, padding: Size, dilation: Size, groups: int
) -> bool:
    """Of a weight gradient, of a transposed convolution or not."""
    if dense.dtype != torch.float32 or groups != 1 or not _has_a_scheme(kernel, stride, padding, dilation, False):
        return False
    strided_3 = (kernel[-1], stride[-1]) == (3, 2)
    rows, columns = gathered.shape[1], dense.shape[1]
    few = _FEW_CHANNELS_STRIDED_3 if strided_3 else _FEW_CHANNELS
    return min(rows, columns) >= few and 4 * columns >= 3 * _BLOCK * -(-columns // _BLOCK)


def _has_a_scheme(kernel: Size, stride: Size, padding: Size, dilation: Size, transposed: bool) -> bool:
    if not 2 <= len(kernel) <= 3 or max(dilation) > 1 or (len(kernel) == 3 and kernel[0] > _MOST_DEPTH):
        return False
    kernel, stride, padding = tuple(kernel[-2:]), tuple(stride[-2:]), tuple(padding[-2:])
    if kernel == (3, 3):
        return stride == (1, 1) or (stride == (2, 2) and (not transposed or padding == (0, 0)))
    return (kernel, stride, padding) == ((4, 4), (2, 2), (1, 1))
