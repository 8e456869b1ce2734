"""Convolution and transposed convolution in one, two and three dimensions, with a fused epilogue."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Implementation, Op, Predicate, Reason, cpu_refusal, triton_refusal, triton_slower
from gencore.ops._autocast import autocast
from gencore.ops._layout import is_channels_last
from gencore.ops.conv_checks import Size, as_int, check_epilogue, expand, find_sizes, find_transposed_sizes
from gencore.ops.conv_core import CONVOLUTION, FUSED_IN_TRAINING
from gencore.processor import HAS_BFLOAT16
from gencore.reference.activation import activate


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    slopes: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """:func:`conv2d` on ``[N, C, L]`` (or ``[C, L]``) with a weight ``[O, C / groups, K]``."""
    epilogue = (scale, residual, activation, negative_slope, slopes, impl)
    return _convolution("conv1d", input, weight, bias, stride, padding, dilation, groups, *epilogue)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    slopes: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""Convolution and all that follows it in one pass: ``activation(scale conv(input) + bias + residual)``.

    .. math::
        y_{nop} = \mathrm{act}\Big(a_{no} \sum_{c,t} w_{oct}\, x_{n,c,\,p\,s - \mathrm{pad} + t\,d} + b_o + r_{nop}\Big)

    On the CPU sums are formed in register tiles from channels_last rows (contiguous images are turned a tile at a
    time), those of float32 filters of 3x3, and of 4x4 at a stride of 2, by minimal filtering. Gradients exist to any
    order. While they are recorded, ``silu``, ``prelu`` and a ``scale`` for each sample that has a gradient run as ops
    of their own. Under ``torch.autocast`` every tensor is taken in the dtype of autocast.

    Args:
        input: ``[N, C, H, W]`` (or ``[C, H, W]``); float32, float64, bfloat16 or float16, any strides. ``"auto"`` and
            ``"reference"`` take whatever PyTorch does: integers, complex numbers.
        weight: ``[O, C / groups, K, L]``, dtype and device of ``input``. On the CPU its packed form is kept for the
            next call (once to 5.4 times its size) as long as the tensor lives.
        bias: ``[O]`` or None.
        stride, dilation: at least 1; one number or one for each dimension.
        padding: zeros on both sides, at least 0; or ``"valid"``, or ``"same"`` (with a stride of 1).
        groups: divides C and O.
        scale: multiplies the sums, ``[O]``, ``[N, O]`` or one number: the 1 / sigma of spectral normalisation, the
            demodulation of a style generator.
        residual: added before the activation; the shape and dtype of the result.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"``, ``"prelu"``, ``"tanh"``, ``"sigmoid"`` or ``"silu"``.
        negative_slope: of ``leaky_relu``.
        slopes: of ``prelu``, one number or ``[O]``.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        ``[N, O, H', W']`` with ``H' = (H + 2 padding - dilation (K - 1) - 1) // stride + 1``; channels_last where
        ``input`` or ``weight`` is, contiguous otherwise.

    Raises:
        TypeError: an argument is not a tensor, or not a whole number.
        RuntimeError: shapes, dtypes, devices or sizes do not fit, as in PyTorch.
        ValueError: the activation is unknown, or ``slopes`` is missing for ``prelu``.
    """
    epilogue = (scale, residual, activation, negative_slope, slopes, impl)
    return _convolution("conv2d", input, weight, bias, stride, padding, dilation, groups, *epilogue)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    slopes: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """:func:`conv2d` on ``[N, C, D, H, W]`` (or ``[C, D, H, W]``) with a weight ``[O, C / groups, K, L, M]``."""
    epilogue = (scale, residual, activation, negative_slope, slopes, impl)
    return _convolution("conv3d", input, weight, bias, stride, padding, dilation, groups, *epilogue)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    slopes: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """:func:`conv_transpose2d` on ``[N, C, L]`` (or ``[C, L]``) with a weight ``[C, O / groups, K]``."""
    epilogue = (scale, residual, activation, negative_slope, slopes, impl)
    return _transposed(
        "conv_transpose1d", input, weight, bias, stride, padding, output_padding, groups, dilation, *epilogue
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    slopes: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""Transposed convolution with the epilogue of :func:`conv2d`, by stride phases.

    Output pixels whose index leaves the same remainder on division by the stride see the same few taps of the filter,
    at neighbouring input pixels: each such phase is a small dense convolution. No zeros are inserted, and nothing is
    scattered. Arguments that :func:`conv2d` has too mean the same.

    Args:
        input: ``[N, C, H, W]`` (or ``[C, H, W]``).
        weight: ``[C, O / groups, K, L]``.
        padding: takes ``padding`` pixels off both sides of the result.
        output_padding: pixels added to one side, at least 0 and less than the stride or the dilation.

    Returns:
        ``[N, O, H', W']`` with ``H' = (H - 1) stride - 2 padding + dilation (K - 1) + output_padding + 1``.

    Reference:
        Zeiler, Krishnan, Taylor and Fergus, "Deconvolutional networks", 2010; Shi et al., "Is the deconvolution layer
        the same as a convolutional layer?", 2016, on the phases.
    """
    epilogue = (scale, residual, activation, negative_slope, slopes, impl)
    return _transposed(
        "conv_transpose2d", input, weight, bias, stride, padding, output_padding, groups, dilation, *epilogue
    )


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    slopes: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """:func:`conv_transpose2d` on ``[N, C, D, H, W]`` with a weight ``[C, O / groups, K, L, M]``."""
    epilogue = (scale, residual, activation, negative_slope, slopes, impl)
    return _transposed(
        "conv_transpose3d", input, weight, bias, stride, padding, output_padding, groups, dilation, *epilogue
    )


# --- one body for each family ----------------------------------------------------------------------------------------


def _convolution(
    name: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    scale: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    slopes: Tensor | None,
    impl: str,
) -> Tensor:
    input, weight, bias, scale, residual, slopes = autocast(input, weight, bias, scale, residual, slopes)
    groups = as_int(name, "groups", groups)
    geometry = (stride, padding, dilation, groups)
    batched, strides, paddings, dilations, out_size = find_sizes(name, input, weight, bias, *geometry)
    check_epilogue(name, input, weight.shape[0], out_size, scale, residual, activation, slopes)
    epilogue = (scale, residual, activation, negative_slope, slopes)
    chosen = OPS[name].select(impl, input, weight, bias, *geometry)
    if chosen == "reference":
        return reference.convolution(input, weight, bias, stride, padding, dilation, groups, *epilogue)
    return _run(
        batched, input, weight, bias, strides, paddings, dilations, out_size, groups, False, *epilogue, impl=chosen
    )


def _transposed(
    name: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    output_padding: Size,
    groups: int,
    dilation: Size,
    scale: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    slopes: Tensor | None,
    impl: str,
) -> Tensor:
    input, weight, bias, scale, residual, slopes = autocast(input, weight, bias, scale, residual, slopes)
    groups = as_int(name, "groups", groups)
    geometry = (stride, padding, output_padding, groups, dilation)
    batched, strides, paddings, dilations, out_size = find_transposed_sizes(name, input, weight, bias, *geometry)
    check_epilogue(name, input, weight.shape[1] * groups, out_size, scale, residual, activation, slopes)
    epilogue = (scale, residual, activation, negative_slope, slopes)
    chosen = OPS[name].select(impl, input, weight, bias, *geometry)
    if chosen == "reference":
        return reference.transposed_convolution(
            input, weight, bias, stride, padding, output_padding, groups, dilation, *epilogue
        )
    return _run(
        batched, input, weight, bias, strides, paddings, dilations, out_size, groups, True, *epilogue, impl=chosen
    )


def _run(
    batched: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    out_size: list[int],
    groups: int,
    transposed: bool,
    scale: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    slopes: Tensor | None,
    impl: str,
) -> Tensor:
    if not batched:
        x, residual = x.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
    geometry = (stride, padding, dilation, out_size, groups, transposed)
    slope = float(negative_slope)
    recorded = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias, scale, residual, slopes)
    )
    if recorded and scale is not None and scale.requires_grad and scale.dim() == 2:
        # The gradient of a scale for each sample takes the sums, so they must be kept.
        sums = CONVOLUTION(x, weight, None, None, None, None, *geometry, "identity", slope, impl)
        y = reference.conv_epilogue(sums, len(out_size), scale, bias, residual, activation, slope, slopes)
    elif recorded and (activation not in FUSED_IN_TRAINING or slope < 0):
        y = CONVOLUTION(x, weight, bias, residual, None, scale, *geometry, "identity", slope, impl)
        y = activate(y, activation, slope, slopes)
    else:
        given = slopes if activation == "prelu" else None
        y = CONVOLUTION(x, weight, bias, residual, given, scale, *geometry, activation, slope, impl)
    return y if batched else y.squeeze(0)


# --- implementations -------------------------------------------------------------------------------------------------


def refusal(
    of_kernels: Predicate, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: object, **kwargs: object
) -> Reason:
    """Why ``of_kernels``, the refusal that the ops share, or the weight's shape leaves a call to plain PyTorch."""
    return "the weight is empty" if 0 in weight.shape else of_kernels(input, weight, bias)


# Where PyTorch was measured to be faster, in the same memory format, on two cores with AVX-512 (docs/ops/conv.md).
_FEW_PRODUCTS = 1 << 19
_FEW_CHANNELS = 32  # in a group: most lanes of a vector stand idle
_FEW_CHANNELS_TRANSPOSED = 16
_IMAGE_CHANNELS = 4  # into so many there is a kernel in float32; out of so many pays in training
# Below these, the channels_last paths of PyTorch, and its gradients at stride 1, are the faster ones.
_MANY_PRODUCTS, _MANY_PRODUCTS_CONTIGUOUS = 1 << 25, 1 << 22
_MANY_CHANNELS, _MANY_CHANNELS_TRANSPOSED, _MANY_CHANNELS_1X1 = 256, 64, 128
_MANY_PIXELS = 128


def _lower_precision_slower(input: Tensor) -> Reason:
    if input.dtype == torch.bfloat16 and HAS_BFLOAT16:
        return "oneDNN's bfloat16 is as fast or faster on processors that have instructions for it"
    return None


def _cpu_slower(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Reason:
    # Stride and groups are in the same place in all three functions.
    stride = kwargs.get("stride", args[1] if len(args) > 1 else 1)
    groups = kwargs.get("groups", args[4] if len(args) > 4 else 1)
    dims = weight.dim() - 2
    step = prod(expand("", "stride", stride, dims, 1))
    pixels = input.numel() // max(1, input.shape[-dims - 1]) // step
    products, fewest = pixels * weight.numel(), min(weight.shape[:2])
    if products < _FEW_PRODUCTS:
        return f"{products} products are too few to be worth the call"
    if groups > 1:
        return "PyTorch's grouped convolution is faster"
    if weight.shape[2:].numel() == 1 and (is_channels_last(input) or fewest >= _MANY_CHANNELS_1X1):
        return "PyTorch's product of matrices is faster"
    if reason := _lower_precision_slower(input):
        return reason
    to_image = weight.shape[0] <= _IMAGE_CHANNELS and weight.shape[1] >= 16 and weight.shape[2:].numel() > 1
    if to_image and step == 1 and input.dtype == torch.float32:
        return None
    recorded = torch.is_grad_enabled() and (weight.requires_grad or input.requires_grad)
    if fewest < _FEW_CHANNELS and not (weight.shape[1] <= _IMAGE_CHANNELS and recorded):
        return f"{fewest} channels leave vectors idle"
    if products < _MANY_PRODUCTS and is_channels_last(input) and (step == 1 or fewest < _MANY_CHANNELS):
        return f"PyTorch's channels_last convolution is faster at {products} products"
    if products < _MANY_PRODUCTS_CONTIGUOUS and fewest >= _FEW_CHANNELS:
        return f"PyTorch's convolution is faster at {products} products"
    if recorded and step == 1 and pixels < _MANY_PIXELS:
        return f"PyTorch's gradients are faster over {pixels} pixels"
    return None


def _cpu_slower_transposed(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Reason:
    groups = kwargs.get("groups", args[4] if len(args) > 4 else 1)
    products = input.numel() // max(1, input.shape[1 - weight.dim()]) * weight.numel()
    if products < _FEW_PRODUCTS:
        return f"{products} products are too few to be worth the call"
    if reason := _lower_precision_slower(input):
        return reason
    if groups == 1 and weight.shape[1] <= _IMAGE_CHANNELS and input.dtype == torch.float32:
        return None
    fewest = min(weight.shape[0] // groups, weight.shape[1])
    if fewest < _FEW_CHANNELS_TRANSPOSED:
        return f"{fewest} channels a group leave vectors idle"
    if products < _MANY_PRODUCTS and is_channels_last(input) and fewest < _MANY_CHANNELS_TRANSPOSED:
        return f"PyTorch's channels_last convolution is faster at {products} products"
    return None


def triton_is_slower(input: Tensor, *args: object, **kwargs: object) -> Reason:
    return triton_slower(input) or "no measurement has shown it to be faster than cuDNN on this GPU"


TRITON = Implementation(partial(refusal, triton_refusal), triton_is_slower)
OPS = {
    f"{kind}{dims}d": Op(
        f"{kind}{dims}d", {"triton": TRITON, "cpu": Implementation(partial(refusal, cpu_refusal), slower)}
    )
    for kind, slower in (("conv", _cpu_slower), ("conv_transpose", _cpu_slower_transposed))
    for dims in (1, 2, 3)
}
