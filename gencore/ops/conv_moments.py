"""A convolution that gathers the mean and variance of its channels: a batch norm after it saves its first pass.

The statistics are taken of the outputs as they are stored, while they lie in registers. They have no gradients: the
backward of a batch norm goes through its input.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from gencore.ops import conv
from gencore.ops._autocast import autocast
from gencore.ops._checks import compute_dtype
from gencore.ops._library import define
from gencore.ops.batch_norm_act import FEW_ELEMENTS
from gencore.ops.conv_checks import find_geometry
from gencore.ops.conv_core import (
    convolution_cpu,
    differentiate_convolution,
    fake_convolution,
    output_channels,
    save_convolution,
)
from gencore.ops.conv_winograd import NONE, Size, winograd_scheme

Moments = tuple[Tensor, Tensor]
"""Mean and biased variance, ``[C]``, in float32 (float64 for float64)."""


def conv_moments(
    name: str, input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any, impl: str
) -> tuple[Tensor, Moments | None]:
    """The convolution ``name`` ("conv1d" to "conv_transpose3d") and the moments of its result; these are None where
    nothing gathers them (PyTorch's and the GPU's convolutions, float16, an input without a batch) and where gathering
    them saves no time.

    Args:
        input, weight, bias: as for the function of that name.
        geometry: its other positional arguments, all of them.
        impl: as for that function.

    Raises:
        What that function raises.
    """
    input, weight, bias = autocast(input, weight, bias)
    if isinstance(input, Tensor) and input.dim() == weight.dim() and input.dtype in _DTYPES:
        impl = conv.OPS[name].select(impl, input, weight, bias, *geometry)
        if impl == "cpu":
            found = find_geometry(name, input, weight, bias, *geometry)[1:]
            if _pays(input, weight, *found):
                y, mean, var = MOMENTS(input, weight, bias, *found, impl)
                return y, (mean, var)
    return getattr(conv, name)(input, weight, bias, *geometry, impl=impl), None


_DTYPES = (torch.float32, torch.float64, torch.bfloat16)  # float16 goes through float32, whose statistics are others


def _pays(
    input: Tensor,
    weight: Tensor,
    stride: Size,
    padding: Size,
    dilation: Size,
    out_size: Size,
    groups: int,
    transposed: bool,
) -> bool:
    if winograd_scheme(input, weight, stride, padding, dilation, out_size, groups, transposed) != NONE:
        return False  # which gathers nothing, and saves more
    pixels = input.shape[0] * prod(out_size)
    # Below that many elements PyTorch's batch norm follows, which takes its own.
    return pixels * output_channels(weight, groups, transposed) >= FEW_ELEMENTS


def _moments_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    out_size: list[int],
    groups: int,
    transposed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if x.dtype == torch.float16:
        raise RuntimeError("convolution_moments: x must be float32, float64 or bfloat16, got float16")
    mean, var = _new_moments(x, output_channels(weight, groups, transposed))
    geometry = (stride, padding, dilation, out_size, groups, transposed)
    y = convolution_cpu(x, weight, bias, None, None, None, *geometry, "identity", 0.0, (mean, var))
    return y, mean, var


def _new_moments(x: Tensor, channels: int) -> Moments:
    mean = x.new_zeros((channels,), dtype=compute_dtype(x.dtype))  # what they stay where the batch is empty
    return mean, torch.zeros_like(mean)


def _fake_moments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    out_size: list[int],
    groups: int,
    transposed: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = (stride, padding, dilation, out_size, groups, transposed)
    y = fake_convolution(x, weight, bias, None, None, None, *geometry, "identity", 0.0, impl)
    return y, *_new_moments(x, output_channels(weight, groups, transposed))


def _save_moments(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, *geometry, impl = inputs
    save_convolution(ctx, (x, weight, bias, None, None, None, *geometry, "identity", 0.0, impl), output[0])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_moments(ctx: Any, grad: Tensor, _mean: Any, _var: Any) -> Any:
    return (*differentiate_convolution(ctx, grad)[:3], *[None] * 7)


MOMENTS = define(
    "convolution_moments(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
    "SymInt[] out_size, int groups, bool transposed, str impl) -> (Tensor y, Tensor mean, Tensor var)",
    {"cpu": _moments_cpu},
    _fake_moments,
    setup_context=_save_moments,
    backward=_differentiate_moments,
)
