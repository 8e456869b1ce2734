"""Convolution, batch normalisation and activation as one layer; in evaluation, as one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from gencore.nn.batchnorm import _BatchNormAct
from gencore.nn.conv import _Conv, _ConvTranspose
from gencore.ops._checks import compute_dtype
from gencore.ops.conv_affine import conv_affine
from gencore.ops.conv_moments import conv_moments
from gencore.ops.conv_replay import recall


class ConvNormAct(nn.Sequential):
    """A convolution and the batch norm (with its activation) that follows it.

    The ``state_dict`` is that of the three ``torch.nn`` modules in ``nn.Sequential(conv, norm, activation)``. In
    evaluation mode, while no gradients are recorded, the norm is folded into the convolution's epilogue: the layer then
    reads its input and writes its result, and nothing in between. The weight itself stays as it is, and packed. In
    training on the CPU the convolution gathers the batch's statistics while it writes, and the norm reads once.

    Args:
        conv: a convolution or transposed convolution of :mod:`gencore.nn`.
        norm: a batch norm of :mod:`gencore.nn`, with ``activation=``.

    Example:
        ``ConvNormAct(Conv2d(64, 128, 4, 2, 1, bias=False), BatchNorm2d(128, activation="relu"))``
    """

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__(conv, norm)

    def forward(
        self, input: Tensor, residual: Tensor | None = None, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """``activation(norm(conv(input)) + residual)``; ``output_size`` is a transposed convolution's."""
        return conv_norm_act(self[0], self[1], input, residual, output_size)


def conv_norm_act(
    conv: Any,
    norm: Any,
    input: Tensor,
    residual: Tensor | None = None,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """``norm(conv(input))`` for layers that stand in a module of their own; folded where :class:`ConvNormAct` folds.

    Layers of ``torch.nn`` are called one after the other.
    """
    size = {} if output_size is None else {"output_size": output_size}
    fits = _fits(conv, norm)
    if fits and (norm.training or norm.running_mean is None):
        arguments = conv._arguments(input, conv.weight, conv.bias, **size)
        y, moments = conv_moments(conv._function.__name__, *arguments, impl=conv.impl)
        return norm._normalize(y, residual, moments)
    folded = _fold(conv, norm, input, residual, size) if fits and _folds(conv, norm, input) else None
    if folded is not None:
        return folded
    y = conv(input, **size)
    return norm(y) if residual is None else norm(y, residual)


def _fold(conv: Any, norm: Any, input: Tensor, residual: Tensor | None, size: dict[str, Any]) -> Tensor | None:
    """One pass; None where rounding the statistics to 16 bits would be its price."""
    buffers, parameters = norm._buffers, norm._parameters  # read directly: a module's attributes take their time
    statistics = (
        buffers["running_mean"],
        buffers["running_var"],
        parameters["weight"],
        parameters["bias"],
        conv._parameters["bias"],
    )
    depends_on = None
    if residual is None and not size:
        settings = type(conv), norm.eps, norm.activation, norm.negative_slope
        depends_on = (conv._parameters.get("weight"), *statistics), (*settings, *map(vars(conv).get, _SETTINGS))
        known = recall(input, *depends_on)
        if known is not None:
            return known
    norm._check_input_dim(input)
    inverse, shift = _affine_map(*statistics, norm.eps, compute_dtype(input.dtype))
    weight, scale = conv._weighted({"scale": inverse})
    input, weight, _, *geometry = conv._arguments(input, weight, None, **size)
    return conv_affine(
        conv._function.__name__,
        input,
        weight,
        *geometry,
        **scale,
        shift=shift,
        residual=residual,
        activation=norm.activation or "identity",
        negative_slope=norm.negative_slope,
        impl=conv.impl,
        depends_on=depends_on,
    )


_SETTINGS = ("stride", "padding", "dilation", "output_padding", "groups", "padding_mode", "impl")


def _affine_map(
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The factor and the summand that a batch norm in evaluation makes of each channel."""
    inverse = (var.to(dtype) + eps).rsqrt_()
    inverse = inverse if weight is None else inverse.mul_(weight)
    mean = mean.to(dtype)
    mean = mean if conv_bias is None else mean - conv_bias
    return inverse, -mean * inverse if bias is None else torch.addcmul(bias.to(dtype), mean, inverse, value=-1)


def _folds(conv: Any, norm: Any, input: Any) -> bool:
    """In evaluation. On a GPU the convolution is PyTorch's, and the batch norm's one pass is the better one. What does
    not fit is left to the layers, which refuse it."""
    mean = norm.running_mean
    return bool(
        not torch.is_grad_enabled()
        and mean.device.type == "cpu"
        and isinstance(input, Tensor)
        and input.dim() == conv.dims + 2
        and mean.numel() == conv.out_channels
        and mean.dtype in (input.dtype, compute_dtype(input.dtype))
    )


def _fits(conv: Any, norm: Any) -> bool:
    """Layers that are what they seem: whoever watches their calls must see the tensor in between, and a hook may be
    what makes the weight. In groups, PyTorch's convolution is the faster one."""
    return bool(
        isinstance(conv, _Conv | _ConvTranspose)
        and isinstance(norm, _BatchNormAct)
        and conv.activation in (None, "identity")
        and conv.groups == 1
        and type(conv).forward in (_Conv.forward, _ConvTranspose.forward)
        and type(norm).forward is _BatchNormAct.forward
        and not (_is_watched(conv) or _is_watched(norm) or _has_any_global_hook())
    )


def _is_watched(layer: nn.Module) -> bool:
    """Whether it has hooks, or a ``forward`` of its own."""
    hooks = layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks
    return any(hooks) or "forward" in vars(layer)
