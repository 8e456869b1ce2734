"""Which convolutions the CPU does by minimal filtering (``csrc/cpu/conv_winograd.h``).

3x3 at strides of 1 and 2, and 4x4 at a stride of 2 with a padding of 1; in three dimensions, those whose last two are
such. The rounding error is that of direct sums, so nothing but the shape decides. Only the scheme with the fewest
products, whose error is some four times that, waits for ``torch.backends.mkldnn.conv.fp32_precision``: PyTorch's own
switch for convolutions that may be less exact than float32. The limits were measured beside the direct sums on two
cores with AVX-512.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

# The schemes, as csrc/cpu/conv.h numbers them.
NONE, UNIT, STRIDED, UNIT_LARGE, STRIDED_LARGE, UNIT_INEXACT = range(6)

_FEW_CHANNELS = 16
_BLOCK = 64  # columns come in such blocks
# At a stride of 2, by the filter's side: the least number of pixels, for few are not worth larger weights.
_LEAST_STRIDED = {4: 128, 3: 2048}
# By the side of the filter, the stride and whether it is transposed: of each scheme the side of a tile of outputs and
# the pairs of values and filters that meet along it.
_TILES = {
    (3, 1, False): {UNIT: (2, 4), UNIT_LARGE: (4, 7)},
    (4, 2, False): {STRIDED: (2, 6), STRIDED_LARGE: (3, 8)},
    (4, 2, True): {STRIDED: (4, 6), STRIDED_LARGE: (6, 8)},
    (3, 2, False): {STRIDED: (2, 5)},
    (3, 2, True): {STRIDED: (4, 5), STRIDED_LARGE: (6, 7)},
}
# How many times fewer products than terms pay for the transforms (over less than a block of channels these weigh more),
# and than those of small tiles for larger transforms.
_FEWER, _FEWER_OF_NARROW, _FEWER_OF_LARGE = 1.25, 1.4, 1.1
# Tiles of 4x4 outputs at a stride of 1, for fewer do not pay for filters three times as large; a weight gradient has as
# large a sum.
_LEAST_TILES, _LEAST_TILES_OF_WEIGHT_GRADIENT = 64, 192
_LEAST_INEXACT = 512  # pixels
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
        if pixels >= _LEAST_INEXACT and may_be_less_exact():
            return UNIT_INEXACT
        return _unit_scheme(x.shape[0], out_size, _LEAST_TILES)
    side = weight.shape[-1]
    terms = prod(out_size[-2:]) * side**2 / (4 if transposed else 1)
    scheme, products = _fewest_products(side, 2, transposed, out_size)
    fewer = _FEWER if min(weight.shape[:2]) >= _BLOCK else _FEWER_OF_NARROW
    return scheme if pixels >= _LEAST_STRIDED[side] and fewer * products <= terms else NONE


def _unit_scheme(images: int, out_size: Size, least: int) -> int:
    """That of the fewest products at a stride of 1, the large one for ``least`` of its tiles and more."""
    tiles = images * prod(out_size[:-2]) * _tiles(out_size, _TILES[3, 1, False][UNIT_LARGE][0])
    return _fewest_products(3, 1, False, out_size)[0] if tiles >= least else UNIT


def _fewest_products(side: int, stride: int, transposed: bool, out_size: Size) -> tuple[int, float]:
    """The scheme that has them, and how many there are in an image (a plane of a volume)."""
    (small, products), *larger = (
        (scheme, _tiles(out_size, outputs) * pairs**2)
        for scheme, (outputs, pairs) in _TILES[side, stride, transposed].items()
    )
    return next((found for found in larger if _FEWER_OF_LARGE * found[1] <= products), (small, products))


def _tiles(out_size: Size, side: int) -> int:
    """Those of an image (a plane of a volume); tiles that it cuts through count whole."""
    return prod(-(-size // side) for size in out_size[-2:])


def may_be_less_exact() -> bool:
    """Whether PyTorch's switch allows convolutions that are less exact than float32."""
    switch: Any = torch.backends.mkldnn  # its attributes are made at import
    return switch.conv.fp32_precision in ("tf32", "bf16")


def weight_gradient_scheme(
    dense: Tensor, gathered: Tensor, kernel: Size, stride: Size, padding: Size, dilation: Size, groups: int
) -> int:
    """That of a weight gradient, of a transposed convolution or not."""
    if dense.dtype != torch.float32 or groups != 1 or not _has_a_scheme(kernel, stride, padding, dilation, False):
        return NONE
    strided_3 = (kernel[-1], stride[-1]) == (3, 2)
    rows, columns = gathered.shape[1], dense.shape[1]
    few = _FEW_CHANNELS_STRIDED_3 if strided_3 else _FEW_CHANNELS
    if min(rows, columns) < few or 4 * columns < 3 * _BLOCK * -(-columns // _BLOCK):
        return NONE
    if stride[-1] == 1:
        return _unit_scheme(dense.shape[0], dense.shape[2:], _LEAST_TILES_OF_WEIGHT_GRADIENT)
    return _fewest_products(kernel[-1], 2, False, dense.shape[2:])[0]


def _has_a_scheme(kernel: Size, stride: Size, padding: Size, dilation: Size, transposed: bool) -> bool:
    if not 2 <= len(kernel) <= 3 or max(dilation) > 1 or (len(kernel) == 3 and kernel[0] > _MOST_DEPTH):
        return False
    kernel, stride, padding = tuple(kernel[-2:]), tuple(stride[-2:]), tuple(padding[-2:])
    if kernel == (3, 3):
        return stride == (1, 1) or (stride == (2, 2) and (not transposed or padding == (0, 0)))
    return (kernel, stride, padding) == ((4, 4), (2, 2), (1, 1))
