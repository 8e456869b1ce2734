"""The two ops under every convolution, transposed convolution and linear layer, closed under differentiation.

``convolution`` computes the output pixels of a convolution or of a transposed one; ``convolution_weight_gradient`` sums
outer products of pixel rows. With D the dense and G the gathered tensor,

    weight_gradient(D, G)[d, g, t] = sum over pixels q of D[q, d] G[q stride - padding + t dilation, g],

the gradient of a convolution to its input is a transposed convolution, and the other way round; to its weight, a weight
gradient; and the gradients of a weight gradient are convolutions. So derivatives exist to any order, by algebra.

A convolution is linear in its weight: where its output channel o is multiplied by a scale a[o], the sums of gradient
times unscaled output are <weight_gradient(D, G)[o], weight[o]>. The gradient of a scale thus follows from that of the
weight, and the unscaled sums need not be kept. A scale for each sample and channel has no such gradient.

Public functions and the tables of implementations are in :mod:`gencore.ops.conv` and
:mod:`gencore.ops.linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gencore.ops._activation import CONV_ACTIVATIONS
from gencore.ops._checks import compute_dtype
from gencore.ops._layout import empty, is_channels_last, laid_out, workable
from gencore.ops._library import define, is_watched
from gencore.ops.bias_act import kinked_gradients
from gencore.ops.conv_line import convolve_line, line_of
from gencore.ops.conv_packing import Packed
from gencore.ops.conv_winograd import NONE, weight_gradient_scheme, winograd_scheme
from gencore.reference.conv import scale_weight, split_channels

FUSED_IN_TRAINING = ("identity", "relu", "leaky_relu", "tanh", "sigmoid")
"""Activations whose derivative follows from their result, so that nothing more than the result is stored."""


def output_channels(weight: Tensor, groups: int, transposed: bool) -> int:
    """Of a convolution's result, from its weight."""
    return weight.shape[1] * groups if transposed else weight.shape[0]


def gives_channels_last(x: Tensor, weight: Tensor) -> bool:
    """As in PyTorch: a network becomes channels_last with its weights, by ``model.to(memory_format=...)``."""
    return any(is_channels_last(t) or _is_one_channel_last(t) for t in (x, weight))


def _is_one_channel_last(x: Tensor) -> bool:
    """One channel fits both formats; as in PyTorch, its stride says which one is meant."""
    return x.dim() > 2 and x.shape[1] == 1 and x.stride(1) == 1 and x.shape[2:].numel() > 1


# --- implementations -------------------------------------------------------------------------------------------------


def convolution_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    scale: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    out_size: list[int],
    groups: int,
    transposed: bool,
    activation: str,
    negative_slope: float,
    moments: tuple[Tensor, Tensor] | tuple[()] = (),
) -> Tensor:
    """``moments``: where the mean and variance of the channels go, for :mod:`gencore.ops.conv_moments`."""
    if x.dtype == torch.float16:
        bias, residual, slopes, scale = (None if t is None else t.float() for t in (bias, residual, slopes, scale))
        rest = (stride, padding, dilation, out_size, groups, transposed, activation, negative_slope)
        return convolution_cpu(x.float(), weight.float(), bias, residual, slopes, scale, *rest).half()
    channels = output_channels(weight, groups, transposed)
    channels_last = gives_channels_last(x, weight)
    y = empty((x.shape[0], channels, *out_size), x, channels_last)
    if y.numel() == 0:
        return y
    compute = compute_dtype(x.dtype)
    residual = laid_out(residual, y)
    if slopes is not None:
        slopes = slopes.to(compute).expand(channels).contiguous()
    if scale is None and residual is None and not moments and not channels_last:
        line = line_of(x, weight, stride, padding, dilation, out_size, groups, transposed)
        if line is not None and convolve_line(line, x, weight, bias, slopes, activation, negative_slope, y):
            return y
    if scale is not None:
        scale = scale.to(compute).expand(channels if scale.dim() < 2 else scale.shape).contiguous()
    tensors = (scale, None if bias is None else bias.to(compute).contiguous(), residual, slopes)
    geometry = (groups, weight.shape[2:], stride, padding, dilation, transposed)
    kind = CONV_ACTIVATIONS[activation]
    winograd = NONE
    if not moments:
        winograd = winograd_scheme(x, weight, stride, padding, dilation, out_size, groups, transposed)
    x, forward = workable(x), torch.ops.gencore_c.conv_forward
    with Packed(weight, groups, not transposed, winograd) as packed:
        right = forward(x, packed, *tensors, *geometry, kind, negative_slope, winograd, y, *moments)
    if not right:  # an input is not finite, and reached outputs that it has no part in
        with Packed(weight, groups, not transposed, NONE) as packed:
            forward(x, packed, *tensors, *geometry, kind, negative_slope, NONE, y)
    return y


def _weight_gradient_cpu(
    dense: Tensor,
    gathered: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    if dense.dtype == torch.float16:
        return _weight_gradient_cpu(dense.float(), gathered.float(), kernel, stride, padding, dilation, groups)
    shape = (dense.shape[1], gathered.shape[1] // groups, *kernel)
    result = torch.empty(shape, dtype=compute_dtype(dense.dtype), device=dense.device)
    if dense.numel() == 0 or gathered.numel() == 0:
        return result.zero_()
    winograd = weight_gradient_scheme(dense, gathered, kernel, stride, padding, dilation, groups)
    torch.ops.gencore_c.conv_weight_gradient(
        workable(dense), workable(gathered), groups, kernel, stride, padding, dilation, winograd, result
    )
    return result


def _convolution_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    scale: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    out_size: list[int],
    groups: int,
    transposed: bool,
    activation: str,
    negative_slope: float,
) -> Tensor:
    from gencore.kernels.conv import convolution

    channels = output_channels(weight, groups, transposed)
    y = empty((x.shape[0], channels, *out_size), x, gives_channels_last(x, weight))
    slopes = None if slopes is None else slopes.expand(channels).contiguous()
    scale = None if scale is None else scale.expand(x.shape[0], channels)
    geometry = (stride, padding, dilation, groups, transposed)
    convolution(x, weight, bias, residual, slopes, scale, *geometry, CONV_ACTIVATIONS[activation], negative_slope, y)
    return y


def _weight_gradient_triton(
    dense: Tensor,
    gathered: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    from gencore.kernels.conv import convolution_weight_gradient

    return convolution_weight_gradient(dense, gathered, kernel, stride, padding, dilation, groups)


# --- registration ----------------------------------------------------------------------------------------------------


def fake_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Tensor | None,
    scale: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    out_size: list[int],
    groups: int,
    transposed: bool,
    activation: str,
    negative_slope: float,
    impl: str,
) -> Tensor:
    channels = output_channels(weight, groups, transposed)
    return empty((x.shape[0], channels, *out_size), x, gives_channels_last(x, weight))


def _fake_weight_gradient(
    dense: Tensor,
    gathered: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    impl: str,
) -> Tensor:
    # Not rounded to 16 bits: what follows may multiply it.
    return dense.new_empty((dense.shape[1], gathered.shape[1] // groups, *kernel), dtype=compute_dtype(dense.dtype))


def save_convolution(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, weight, bias, residual, slopes, scale, *ctx.geometry, ctx.activation, ctx.negative_slope, ctx.impl = inputs
    if (slopes is not None and slopes.requires_grad) or (scale is not None and scale.requires_grad and scale.dim() > 1):
        raise RuntimeError(
            "convolution: the op has no gradients to slopes and to a scale for each sample; the public functions have"
        )
    ctx.needs = [t is not None and t.requires_grad for t in (x, weight, bias, residual, scale)]
    kinked = ctx.activation in ("relu", "leaky_relu")
    kept = None if ctx.activation == "identity" else output
    ctx.save_for_backward(x, weight, scale, kept, *((bias, residual) if kinked else (None, None)))


def differentiate_convolution(ctx: Any, grad: Tensor) -> Any:
    x, weight, scale, output, bias, residual = ctx.saved_tensors
    stride, padding, dilation, _, groups, transposed = ctx.geometry
    grad_bias = None
    if _in_one_pass(ctx, grad):
        slope = ctx.negative_slope if ctx.activation == "leaky_relu" else 0.0
        grad, grad_bias = kinked_gradients(grad, output, ctx.activation, slope, ctx.needs[2], ctx.impl)
    else:
        grad = _activation_gradient(grad, output, ctx.activation, ctx.negative_slope)
        if output is not None and torch.is_grad_enabled():
            grad = _with_zeros_for(grad, [x, weight, bias, residual, scale])
        if ctx.needs[2]:
            grad_bias = grad.sum([0, *range(2, grad.dim())])
    grad_residual = grad if ctx.needs[3] else None
    if scale is not None and scale.dim() == 2:
        grad, scale = grad * scale.reshape(*scale.shape, *[1] * (grad.dim() - 2)), None
    grad_x = grad_weight = grad_scale = None
    if ctx.needs[0]:
        one = scale if scale is not None and scale.numel() == 1 else None  # costs nothing in the next epilogue
        scaled = grad if scale is one else grad * scale.reshape(-1, *[1] * (grad.dim() - 2))
        size = list(x.shape[2:])
        grad_x = convolve(scaled, weight, stride, padding, dilation, size, groups, not transposed, ctx.impl, one)
    if ctx.needs[1] or ctx.needs[4]:
        dense, gathered = (x, grad) if transposed else (grad, x)
        kernel = list(weight.shape[2:])
        products = WEIGHT_GRADIENT(dense, gathered, kernel, stride, padding, dilation, groups, ctx.impl)
        if ctx.needs[4]:
            terms, fitting = split_channels(products * weight, scale, groups, transposed)
            grad_scale = terms.sum_to_size(fitting.shape).reshape(scale.shape).to(scale.dtype)
        if ctx.needs[1]:
            grad_weight = products if scale is None else scale_weight(products, scale, groups, transposed)
            grad_weight = grad_weight.to(weight.dtype)
    return (grad_x, grad_weight, grad_bias, grad_residual, None, grad_scale, *[None] * 9)


def _in_one_pass(ctx: Any, grad: Tensor) -> bool:
    """Whether a kernel takes the gradient through the activation and sums it over the pixels at once. A compiler fuses
    PyTorch's ops with what is around them, and what is to be differentiated again needs a formula."""
    eager = not (torch.is_grad_enabled() or is_watched())
    return eager and ctx.impl == "cpu" and ctx.activation in ("relu", "leaky_relu") and type(grad) is Tensor


def _activation_gradient(grad: Tensor, output: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """The gradient before the activation, from the gradient after it and the result."""
    if activation == "identity":
        return grad
    assert output is not None
    aten = torch.ops.aten
    # Piecewise linear: the second derivative is zero, so the result takes no part in it.
    if activation == "relu":
        return aten.threshold_backward(grad, output.detach(), 0)
    if activation == "leaky_relu":
        return aten.leaky_relu_backward(grad, output.detach(), negative_slope, True)
    if activation == "tanh":
        return aten.tanh_backward(grad, output)
    if activation == "sigmoid":
        return aten.sigmoid_backward(grad, output)
    raise RuntimeError(f"convolution: the op cannot be differentiated through activation {activation!r}")


def _with_zeros_for(grad: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
    """``grad``, whose derivative by the leaves among ``tensors`` is zero rather than missing.

    PyTorch sends such zeros from the kinks of an activation all the way through the network. Here only leaves get
    theirs, which costs nothing.
    """
    leaves = [t for t in tensors if t is not None and t.requires_grad and t.is_leaf]
    return _ZerosForLeaves.apply(grad, *leaves) if leaves else grad


class _ZerosForLeaves(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, *leaves: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (*grads, *(torch.zeros_like(leaf) for leaf in ctx.saved_tensors))


def _save_weight_gradient(ctx: Any, inputs: Any, output: Tensor) -> None:
    dense, gathered, *ctx.geometry, ctx.impl = inputs
    ctx.needs = [dense.requires_grad, gathered.requires_grad]
    ctx.save_for_backward(dense, gathered)


def _differentiate_weight_gradient(ctx: Any, grad: Tensor) -> Any:
    dense, gathered = ctx.saved_tensors
    grad = grad.to(dense.dtype)
    _, stride, padding, dilation, groups = ctx.geometry
    grad_dense = grad_gathered = None
    if ctx.needs[0]:
        size = list(dense.shape[2:])
        grad_dense = convolve(gathered, grad, stride, padding, dilation, size, groups, False, ctx.impl)
    if ctx.needs[1]:
        size = list(gathered.shape[2:])
        grad_gathered = convolve(dense, grad, stride, padding, dilation, size, groups, True, ctx.impl)
    return grad_dense, grad_gathered, *[None] * 6


def convolve(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    out_size: list[int],
    groups: int,
    transposed: bool,
    impl: str,
    scale: Tensor | None = None,
) -> Tensor:
    """A convolution with nothing but a scale for an epilogue."""
    geometry = (stride, padding, dilation, out_size, groups, transposed)
    return CONVOLUTION(x, weight, None, None, None, scale, *geometry, "identity", 0.0, impl)


CONVOLUTION = define(
    "convolution(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? slopes, Tensor? scale, int[] stride, "
    "int[] padding, int[] dilation, SymInt[] out_size, int groups, bool transposed, str activation, "
    "float negative_slope, str impl) -> Tensor",
    {"cpu": convolution_cpu, "triton": _convolution_triton},
    fake_convolution,
    setup_context=save_convolution,
    backward=differentiate_convolution,
)
WEIGHT_GRADIENT = define(
    "convolution_weight_gradient(Tensor dense, Tensor gathered, SymInt[] kernel, int[] stride, int[] padding, "
    "int[] dilation, int groups, str impl) -> Tensor",
    {"cpu": _weight_gradient_cpu, "triton": _weight_gradient_triton},
    _fake_weight_gradient,
    setup_context=_save_weight_gradient,
    backward=_differentiate_weight_gradient,
)
