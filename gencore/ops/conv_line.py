"""Convolutions along one line by minimal filtering on the CPU: long filters, as WaveGAN's 25 taps at a stride of 4.

At a stride s the numbers s q + r of a line, r < s, are s phases of pixel q. Over the phases of its input a convolution
has a stride of 1 and the s-th part of the taps, and over the phases of its output a transposed one has:

    y[q] = sum over u and r of x[s (q + u - padding) + r] w[first + r + s u]
    y[s q + r] = sum over u of x[q + u - padding] w[first + r - s u]

with taps outside the filter zero. So one kernel, of eight taps u at a stride of 1 (``Line8`` of
``csrc/cpu/winograd_unit.h``: 36 products for 96 terms), does both. Phases are told apart while a line is copied, so
that nothing is rearranged in memory. Weight gradients are direct sums: they gained nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gencore.ops._activation import CONV_ACTIVATIONS
from gencore.ops.conv_packing import Packed
from gencore.ops.conv_winograd import UNIT

_TAPS, _PHASES = 8, (1, 2, 4, 8)
_OUTPUTS, _PRODUCTS = 12, 36  # of a tile
_FEWER = 1.5  # how many times fewer products than terms pay for the transforms
# Few channels pay for transforms less, and few pixels for a weight that is several times as large. The rounding error
# of few terms in all is more than twice that of direct sums.
_FEW_CHANNELS, _FEW_TERMS, _LEAST_PIXELS = 16, 64, 1024


class Line(NamedTuple):
    """How a convolution of ``taps`` taps becomes one of eight; what its weight is packed for."""

    taps: int
    stride: int
    padding: int
    first: int
    transposed: bool

    def filters(self, weight: Tensor) -> Tensor:
        """``[channels out, channels in, 8, 1]``, those with phases counted once a phase."""
        whole = _TAPS * self.stride
        if not self.transposed:
            spread = F.pad(weight, (-self.first, whole - self.taps + self.first))
            return spread.unflatten(2, (_TAPS, self.stride)).mT.flatten(1, 2)[..., None].contiguous()
        before = whole - self.stride - self.first
        spread = F.pad(weight, (before, whole - self.taps - before))
        phases = spread.unflatten(2, (_TAPS, self.stride)).flip(2)  # [in, out, tap, phase]
        return phases.permute(1, 3, 0, 2).flatten(0, 1)[..., None].contiguous()


def line_of(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_size: Sequence[int],
    groups: int,
    transposed: bool,
) -> Line | None:
    """That of a convolution, transposed or not; None where it is done otherwise."""
    if x.dim() != 3 or x.dtype != torch.float32 or groups != 1 or dilation[0] != 1 or stride[0] not in _PHASES:
        return None
    taps, step, shift = weight.shape[2], stride[0], padding[0]
    # The offsets of the pixels that an output of any phase meets are low to high.
    if transposed:
        low, high, inner = -((taps - 1 - shift) // step), (step - 1 + shift) // step, out_size[0] // step
    else:
        low, high, inner = -((shift + step - 1) // step), (taps - 1 - shift) // step, out_size[0]
    few = min(weight.shape[:2]) < _FEW_CHANNELS or x.shape[1] * (1 if transposed else step) < _FEW_TERMS
    if few or x.shape[0] * inner < _LEAST_PIXELS or (transposed and out_size[0] % step):
        return None
    if high - low >= _TAPS or low > 0 or _FEWER * -(-inner // _OUTPUTS) * _PRODUCTS > inner * taps / step:
        return None
    return Line(taps, step, -low, shift + (-low if transposed else low) * step, transposed)


def convolve_line(
    line: Line,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    activation: str,
    negative_slope: float,
    y: Tensor,
) -> bool:
    """Into ``y``, contiguous. Whether the result is right: it is not where an input is not finite."""
    phases = (1, line.stride) if line.transposed else (line.stride, 1)
    bias, slopes = (None if t is None else t.repeat_interleave(phases[1]) for t in (bias, slopes))
    with Packed(weight, 1, True, UNIT, line) as packed:
        return torch.ops.gencore_c.conv_line_forward(
            _in_phases(x, phases[0]),
            packed,
            bias,
            slopes,
            line.padding,
            *phases,
            CONV_ACTIVATIONS[activation],
            negative_slope,
            y,
        )


def _in_phases(x: Tensor, phases: int) -> Tensor:
    """``x``, contiguous, of a length that ``phases`` divides: what is added is zero, as padding is."""
    return F.pad(x, (0, -x.shape[2] % phases)).contiguous()
