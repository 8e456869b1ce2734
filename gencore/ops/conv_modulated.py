"""A modulated convolution as one op of the CPU's, where no gradient is recorded and nothing is resampled.

Minimal filtering multiplies the input channels by the style as it loads them, and does on its way out all that a
synthesis layer ends in. Convolutions that go another way get scaled images or, where those are larger, scaled weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gencore.ops._activation import CONV_ACTIVATIONS
from gencore.ops._checks import compute_dtype
from gencore.ops._layout import empty, workable
from gencore.ops._library import define
from gencore.ops.bias_act import scaled_bias_act
from gencore.ops.conv_core import convolution_cpu, gives_channels_last
from gencore.ops.conv_packing import Packed
from gencore.ops.conv_winograd import NONE, winograd_scheme
from gencore.ops.upfirdn2d import Epilogue


def convolve_modulated(
    x: Tensor, weight: Tensor, style: Tensor, padding: list[int], out_size: list[int], epilogue: Epilogue
) -> Tensor:
    """``epilogue(conv2d(style * x, weight))``.

    Args:
        x: ``[N, I, H, W]``. weight: ``[O, I, k, l]``. style: ``[N, I]``.
        padding: (y, x). out_size: (H', W').
        epilogue: its ``act`` is one of ``SLOPES``.
    """
    factors = style.to(compute_dtype(x.dtype)).contiguous()
    *tensors, slope, gain, clamp = epilogue.arguments(x)
    return MODULATED(x, weight, factors, *tensors, padding, out_size, slope, gain, clamp, "cpu")


_FEW_COLUMNS = 4
_MANY_ELEMENTS = 1 << 17  # of a sample: scaling them takes longer than the calls for one sample at a time


def _modulated_cpu(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    bias: Tensor | None,
    padding: list[int],
    out_size: list[int],
    negative_slope: float,
    gain: float,
    clamp: float,
) -> Tensor:
    geometry = ([1, 1], padding, [1, 1], out_size, 1, False)
    activation = "identity" if negative_slope == 1 else "leaky_relu"
    scheme = winograd_scheme(x, weight, *geometry)
    if scheme != NONE and x.numel() > 0:
        y = empty((x.shape[0], weight.shape[0], *out_size), x, gives_channels_last(x, weight))
        sizes = (1, weight.shape[2:], [1, 1], padding, [1, 1], False)
        end = (CONV_ACTIVATIONS[activation], negative_slope, scheme, y, None, None, style, noise, gain, clamp)
        with Packed(weight, 1, True, scheme) as packed:
            forward = torch.ops.gencore_c.conv_forward
            if forward(workable(x), packed, scale, bias, None, None, *sizes, *end):
                return y

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return convolution_cpu(x, weight, None, None, None, None, *geometry, "identity", 0.0)

    few = x.dtype == torch.float32 and len(weight) <= _FEW_COLUMNS and weight.shape[2:].numel() == 1
    if few and len(x) > 0 and x[0].numel() >= _MANY_ELEMENTS:
        weights = weight * style[:, None, :, None, None]
        y = torch.cat([convolve(*sample) for sample in zip(x.split(1), weights, strict=True)])
    else:
        y = convolve(scaled_bias_act(x, style, None, None, 1, "identity", 0.0, 1.0, -1.0, "cpu"), weight)
    if scale is noise is bias is None and (activation, gain, clamp < 0) == ("identity", 1.0, True):
        return y
    return scaled_bias_act(y, scale, noise, bias, 1, activation, negative_slope, gain, clamp, "cpu")


def _fake_modulated(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    bias: Tensor | None,
    padding: list[int],
    out_size: list[int],
    negative_slope: float,
    gain: float,
    clamp: float,
    impl: str,
) -> Tensor:
    return empty((x.shape[0], weight.shape[0], *out_size), x, gives_channels_last(x, weight))


MODULATED = define(
    "modulated_convolution(Tensor x, Tensor weight, Tensor style, Tensor? scale, Tensor? noise, Tensor? bias, "
    "int[] padding, SymInt[] out_size, float negative_slope, float gain, float clamp, str impl) -> Tensor",
    {"cpu": _modulated_cpu},
    _fake_modulated,
)
