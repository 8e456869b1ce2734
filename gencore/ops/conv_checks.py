"""What a convolution checks before anything runs, and the sizes that follow from its arguments."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gencore.ops._activation import CONV_ACTIVATIONS
from gencore.ops._checks import check_device, check_shape, check_tensor
from gencore.ops.conv_core import output_channels

Size = int | Sequence[int]

_WHOLE = (int, torch.SymInt)
_SEQUENCES = (tuple, list, Sequence)  # the abstract class takes longest to tell


def find_sizes(
    name: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
) -> tuple[bool, list[int], list[int], list[int], list[int]]:
    """Checks a convolution: whether there is a batch; stride, padding, dilation and result, a number a dimension."""
    dims = int(name[-2])
    batched = check_tensors(name, dims, input, weight, bias, groups, transposed=False)
    strides, dilations = expand(name, "stride", stride, dims, 1), expand(name, "dilation", dilation, dims, 1)
    kernel = weight.shape[2:]
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise RuntimeError(f"{name}: padding must be numbers, 'same' or 'valid', got {padding!r}")
        if padding == "same" and any(s != 1 for s in strides):
            raise RuntimeError(f"{name}: padding='same' is not supported for strided convolutions, got stride {stride}")
        same = padding == "same"
        total = [d * (k - 1) if same else 0 for k, d in zip(kernel, dilations, strict=True)]
    else:
        total = [2 * p for p in expand(name, "padding", padding, dims, 0)]
    paddings = [t // 2 for t in total]  # an odd total puts the odd zero on the far side
    size = input.shape[-dims:]
    out_size = []
    for i, k, s, t, d in zip(size, kernel, strides, total, dilations, strict=True):
        if i + t < d * (k - 1) + 1:
            raise RuntimeError(
                f"{name}: the padded input must not be smaller than the kernel, got input size {tuple(size)}, kernel "
                f"size {tuple(kernel)}, padding {padding} and dilation {dilation}"
            )
        out_size.append((i + t - d * (k - 1) - 1) // s + 1)
    return batched, strides, paddings, dilations, out_size


def find_transposed_sizes(
    name: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    output_padding: Size,
    groups: int,
    dilation: Size,
) -> tuple[bool, list[int], list[int], list[int], list[int]]:
    """:func:`find_sizes` for a transposed convolution."""
    dims = int(name[-2])
    batched = check_tensors(name, dims, input, weight, bias, groups, transposed=True)
    strides, dilations = expand(name, "stride", stride, dims, 1), expand(name, "dilation", dilation, dims, 1)
    paddings, extras = (
        expand(name, "padding", padding, dims, 0),
        expand(name, "output_padding", output_padding, dims, 0),
    )
    size, kernel = input.shape[-dims:], weight.shape[2:]
    out_size = []
    for i, k, s, p, d, extra in zip(size, kernel, strides, paddings, dilations, extras, strict=True):
        if extra >= max(s, d):
            raise RuntimeError(
                f"{name}: output_padding must be smaller than either stride or dilation, got output_padding "
                f"{output_padding}, stride {stride} and dilation {dilation}"
            )
        out_size.append((i - 1) * s - 2 * p + d * (k - 1) + extra + 1)
    if any(o < 1 for o in out_size):
        raise RuntimeError(f"{name}: the result would have size {tuple(out_size)}; it must be at least 1 everywhere")
    return batched, strides, paddings, dilations, out_size


def find_geometry(
    name: str, input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[bool, list[int], list[int], list[int], list[int], int, bool]:
    """Checks either family's positional ``arguments``: what :func:`find_sizes` gives, the groups, and whether it is
    transposed."""
    transposed = name.startswith("conv_transpose")
    find = find_transposed_sizes if transposed else find_sizes
    return *find(name, input, weight, bias, *arguments), arguments[3], transposed


def expand(name: str, argument: str, value: Size, dims: int, least: int) -> list[int]:
    """``value`` as one number for each dimension, each at least ``least``."""
    if type(value) is int:
        numbers = [value] * dims
    else:
        many = isinstance(value, _SEQUENCES) and not isinstance(value, str)
        numbers = [as_int(name, argument, v) for v in (value if many else [value])]  # type: ignore[union-attr]
        numbers = numbers * dims if len(numbers) == 1 else numbers
    if len(numbers) != dims:
        raise RuntimeError(f"{name}: {argument} must be one number or {dims}, got {value}")
    for number in numbers:
        if number < least:
            raise RuntimeError(f"{name}: {argument} must be at least {least}, got {value}")
    return numbers


def as_int(name: str, argument: str, value: Any) -> int:
    """Takes what PyTorch takes for a whole number: also NumPy's, and tensors of one; but neither a bool nor a float."""
    if type(value) in _WHOLE:
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: {argument} must be whole numbers, got {value!r}") from None


def check_tensors(
    name: str, dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, transposed: bool
) -> bool:
    """Checks dtypes, devices and channels; whether the input has a batch dimension."""
    check_tensor(name, "input", input)
    check_tensor(name, "weight", weight)
    check_device(name, "weight", weight, "input", input)
    check_dtype(name, "weight", weight, input)
    if weight.dim() != dims + 2:
        raise RuntimeError(f"{name}: weight must have {dims + 2} dimensions, got shape {tuple(weight.shape)}")
    if input.dim() not in (dims + 1, dims + 2):
        raise RuntimeError(
            f"{name}: input must have {dims + 2} dimensions (or {dims + 1} without a batch), got shape "
            f"{tuple(input.shape)}"
        )
    if groups < 1:
        raise RuntimeError(f"{name}: groups must be at least 1, got {groups}")
    if weight.shape[0] % groups != 0 or weight.shape[0] < groups:
        raise RuntimeError(
            f"{name}: weight's first dimension must be divisible by groups, got shape {tuple(weight.shape)} and groups "
            f"{groups}"
        )
    for i, size in enumerate(weight.shape):
        if size < 1 and (transposed or i != 1):
            raise RuntimeError(f"{name}: weight must not be empty, got shape {tuple(weight.shape)}")
    channels = input.shape[-dims - 1]
    wanted = weight.shape[0] if transposed else weight.shape[1] * groups
    if channels != wanted:
        raise RuntimeError(
            f"{name}: input must have {wanted} channels for a weight of shape {tuple(weight.shape)} and groups "
            f"{groups}, got {channels} (shape {tuple(input.shape)})"
        )
    for size in input.shape[-dims:]:
        if size < 1:
            raise RuntimeError(
                f"{name}: input must have no spatial dimension of size 0, got shape {tuple(input.shape)}"
            )
    if bias is not None:
        check_tensor(name, "bias", bias)
        check_device(name, "bias", bias, "input", input)
        check_dtype(name, "bias", bias, input)
        check_shape(name, "bias", bias, (output_channels(weight, groups, transposed),))
    return input.dim() == dims + 2


def check_dtype(name: str, argument: str, x: Tensor, input: Tensor) -> None:
    if x.dtype != input.dtype:
        raise RuntimeError(f"{name}: {argument} must have input's dtype {input.dtype}, got {x.dtype}")


def check_epilogue(
    name: str,
    input: Tensor,
    channels: int,
    out_size: Sequence[int],
    scale: Tensor | None,
    residual: Tensor | None,
    activation: str,
    slopes: Tensor | None,
) -> None:
    if activation not in CONV_ACTIVATIONS:
        raise ValueError(f"{name}: activation must be one of {', '.join(CONV_ACTIVATIONS)}, got {activation!r}")
    if activation == "prelu":
        if slopes is None:
            raise ValueError(f"{name}: activation 'prelu' needs slopes")
        check_tensor(name, "slopes", slopes)
        check_device(name, "slopes", slopes, "input", input)
        check_dtype(name, "slopes", slopes, input)
        if slopes.numel() != 1:
            check_shape(name, "slopes", slopes, (channels,))
    batch = input.shape[: input.dim() - len(out_size) - 1]
    if scale is not None:
        check_tensor(name, "scale", scale)
        check_device(name, "scale", scale, "input", input)
        check_dtype(name, "scale", scale, input)
        if scale.numel() != 1 or scale.dim() > 1:
            check_shape(name, "scale", scale, (*batch, channels) if scale.dim() == 2 else (channels,))
    if residual is not None:
        check_tensor(name, "residual", residual)
        check_device(name, "residual", residual, "input", input)
        check_dtype(name, "residual", residual, input)
        check_shape(name, "residual", residual, (*batch, channels, *out_size))
