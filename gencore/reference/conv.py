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
    residual: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    slopes: Tensor | None = None,
) -> Tensor:
    """y[n, o, p] = act(sum_{c, t} w[o, c, t] x[n, c, p stride - padding + t dilation] + b[o] + residual[n, o, p])."""
    function = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
    y = function(input, weight, bias, stride, padding, dilation, groups)
    return activate(y if residual is None else y + residual, activation, negative_slope, slopes)


def transposed_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    output_padding: Sequence[int] | int = 0,
    groups: int = 1,
    dilation: Sequence[int] | int = 1,
    residual: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    slopes: Tensor | None = None,
) -> Tensor:
    """y[n, o, p] = act(sum of w[c, o, t] x[n, c, q] over q stride - padding + t dilation = p, + b[o] + residual)."""
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.dim() - 3]
    y = function(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return activate(y if residual is None else y + residual, activation, negative_slope, slopes)


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Tensor:
    """y = act(x w^T + b)."""
    return activate(F.linear(input, weight, bias), activation, negative_slope)
