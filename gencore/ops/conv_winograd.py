"""Which convolutions the CPU does by minimal filtering (``csrc/cpu/conv_winograd.h``).

3x3 at strides of 1 and 2, and 4x4 at a stride of 2 with a padding of 1; in three dimensions, those whose last two are
such. The rounding error is that of direct sums, so nothing but the shape decides. Only tiles of 4x4 outputs, whose
error is some four times that, wait for ``torch.backends.mkldnn.conv.fp32_precision``: PyTorch's own switch for
convolutions that may be less exact than float32. The limits were measured beside the direct sums on two cores with
AVX-512.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

# The schemes, as csrc/cpu/conv.h numbers them.
NONE, UNIT, STRIDED, UNIT_LARGE = range(4)

_FEW_CHANNELS = 16
_BLOCK = 64  # columns of a weight gradient come in such blocks
# At a stride of 2, by the filter's side and whether it is transposed: the least side of the output and its least number
# of pixels. Small images meet much padding, which direct sums leave out; few pixels are not worth larger weights.
_LEAST = {(4, False): (4, 128), (4, True): (4, 128), (3, False): (8, 4096), (3, True): (64, 4096)}
_LEAST_LARGE = 512  # pixels, for tiles of 4x4
_FEW_CHANNELS_STRIDED_3 = 128  # for the weight gradient

_MOST_DEPTH = 8  # taps along the depth

Size = Sequence[int]


def winograd_scheme(
    x: Tensor,
    weight: Tensor,
    stride: Size,
    padding: Size,
    dilation: Size,
    out_size: Size,
    groups: int,
    transposed: bool,
) -> int:
    """That of a convolution, transposed or not."""
    if x.dtype != torch.float32 or groups != 1 or min(weight.shape[:2]) < _FEW_CHANNELS:
        return NONE
    if not _has_a_scheme(weight.shape[2:], stride, padding, dilation, transposed):
        return NONE
    pixels = x.shape[0] * prod(out_size)
    if stride[-1] == 1:
        return UNIT_LARGE if pixels >= _LEAST_LARGE and may_be_less_exact() else UNIT
    least_side, least_pixels = _LEAST[weight.shape[-1], transposed]
    return STRIDED if min(out_size[-2:]) >= least_side and pixels >= least_pixels else NONE


def may_be_less_exact() -> bool:
    """Whether PyTorch's switch allows convolutions that are less exact than float32."""
    switch: Any = torch.backends.mkldnn  # its attributes are made at import
    return switch.conv.fp32_precision in ("tf32", "bf16")


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
