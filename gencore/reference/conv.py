"""Oracles of the convolution family and of ``linear``: PyTorch's own functions and an activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from gencore.reference.activation import activate


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int | str = 0,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    slopes: Tensor | None = None,
) -> Tensor:
    """y[n, o, p] = act(a[n, o] sum_{c, t} w[o, c, t] x[n, c, p stride - padding + t dilation] + b[o] + r[n, o, p])."""
    function = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
    if scale is not None and scale.dim() < 2:
        weight, scale = scale_weight(weight, scale, groups), None
    late = scale is not None  # then the bias is added after it
    y = function(input, weight, None if late else bias, stride, padding, dilation, groups)
    epilogue = (scale, bias if late else None, residual, activation, negative_slope, slopes)
    return conv_epilogue(y, weight.dim() - 2, *epilogue)


def transposed_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    output_padding: Sequence[int] | int = 0,
    groups: int = 1,
    dilation: Sequence[int] | int = 1,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    slopes: Tensor | None = None,
) -> Tensor:
    """y[n, o, p] = act(a[n, o] sum of w[c, o, t] x[n, c, q] over q stride - padding + t dilation = p, + b[o] + r)."""
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.dim() - 3]
    if scale is not None and scale.dim() < 2:
        weight, scale = scale_weight(weight, scale, groups, transposed=True), None
    late = scale is not None  # then the bias is added after it
    y = function(input, weight, None if late else bias, stride, padding, output_padding, groups, dilation)
    epilogue = (scale, bias if late else None, residual, activation, negative_slope, slopes)
    return conv_epilogue(y, weight.dim() - 2, *epilogue)


def conv_epilogue(
    sums: Tensor,
    dims: int,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    slopes: Tensor | None,
) -> Tensor:
    """act(scale sums + bias + residual) over the last ``dims`` dimensions; ``scale`` is [N, O], [O] or one number."""
    ones = [1] * dims
    y = sums if scale is None else sums * scale.reshape(*scale.shape, *ones)
    y = y if bias is None else y + bias.reshape(-1, *ones)
    y = y if residual is None else y + residual
    if y.dim() == dims + 1:  # without a batch; PReLU's channels are the second dimension
        return activate(y.unsqueeze(0), activation, negative_slope, slopes).squeeze(0)
    return activate(y, activation, negative_slope, slopes, overwrite=True)


def scale_weight(weight: Tensor, scale: Tensor, groups: int = 1, transposed: bool = False) -> Tensor:
    """The weight times a scale [O] or of one number: what multiplies the result, for less, and a bias comes after."""
    weight, scale = split_channels(weight, scale, groups, transposed)
    return (weight * scale).flatten(0, 1)


def split_channels(weight: Tensor, scale: Tensor, groups: int, transposed: bool) -> tuple[Tensor, Tensor]:
    """The weight as [groups, first / groups, second, ...], and the scale in a shape that multiplies its outputs."""
    weight = weight.unflatten(0, (groups, -1))
    first = 1 if scale.numel() == 1 else groups
    channels = (1, -1) if transposed else (-1, 1)
    return weight, scale.reshape(first, *channels, *[1] * (weight.dim() - 3))


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Tensor:
    """y = act(a x w^T + b)."""
    weight = weight if scale is None else scale_weight(weight, scale)
    return activate(F.linear(input, weight, bias), activation, negative_slope, overwrite=True)
