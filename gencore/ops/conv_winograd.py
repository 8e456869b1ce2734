"""Which convolutions the CPU does by minimal filtering (``csrc/cpu/conv_winograd.h``).

3x3 at a stride of 1, and 4x4 at a stride of 2 with a padding of 1.

The rounding error is that of direct sums, so nothing but the shape decides. The limits were measured beside the direct
sums on two cores with AVX-512.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_FEW_CHANNELS = 16
_BLOCK = 64  # columns of a weight gradient come in such blocks
# Of 4x4 convolutions.
_FEW_PIXELS = 1024
_SMALL_IMAGE = 4  # most of its products are with padding, which direct sums leave out

Size = Sequence[int]


def by_winograd(
    x: Tensor, weight: Tensor, stride: Size, padding: Size, dilation: Size, out_size: Size, groups: int
) -> bool:
    """Of a convolution, transposed or not."""
    kernel = weight.shape[2:]
    return (
        x.dtype == torch.float32
        and groups == 1
        and min(weight.shape[:2]) >= _FEW_CHANNELS
        and _has_a_scheme(kernel, stride, padding, dilation)
        and (kernel[0] == 3 or (min(out_size) >= _SMALL_IMAGE and x.shape[0] * prod(out_size) >= _FEW_PIXELS))
    )


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
        and _has_a_scheme(kernel, stride, padding, dilation)
    )


def _has_a_scheme(kernel: Size, stride: Size, padding: Size, dilation: Size) -> bool:
    kernel, stride, padding, dilation = (tuple(sizes) for sizes in (kernel, stride, padding, dilation))
    if dilation != (1, 1):
        return False
    return (kernel, stride) == ((3, 3), (1, 1)) or (kernel, stride, padding) == ((4, 4), (2, 2), (1, 1))
