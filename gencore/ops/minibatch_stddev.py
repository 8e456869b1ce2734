"""Minibatch standard deviation: what lets a discriminator see that all samples look alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Implementation, Op, cpu_refusal, triton_refusal, triton_slower
from gencore.ops._checks import check_floating
from gencore.ops._layout import empty, is_channels_last, workable
from gencore.ops._library import define, differentiate, triton_kernel

_EPS = 1e-8


def minibatch_stddev(x: Tensor, group_size: int | None = 4, num_channels: int = 1, *, impl: str = "auto") -> Tensor:
    r"""Append ``num_channels`` constant maps: how much the samples of a group differ, on average.

    With the samples of a group g = {n : n mod (N / G) = m} and a slice of the channels,

    .. math:: s_m = \mathrm{mean}_{chw} \sqrt{\mathrm{var}_{n \in g}(x_{nchw}) + 10^{-8}}

    with the biased variance. Statistics are held in float32 (float64 for float64). Nothing is kept for the backward but
    x. Derivatives exist to any order. ``num_channels=1`` is what progressive GANs have, too.

    Args:
        x: ``[N, C, H, W]`` (or any ``[N, C, ...]``); float32, float64, bfloat16 or float16; contiguous and
            channels_last are worked on as they are, other strides through a copy.
        group_size: samples of a group; N where N is smaller; None: all of them. Divides N.
        num_channels: maps to append, each for its own slice of the channels. Divides C.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        ``[N, C + num_channels, H, W]``, in x's dtype; channels_last where x is, otherwise contiguous.

    Raises:
        TypeError: x is not a tensor, or a size no whole number.
        RuntimeError: a shape or dtype that does not fit; sizes that do not divide N or C.

    Reference:
        Karras, Aila, Laine and Lehtinen, "Progressive growing of GANs", 2018, section 3.
    """
    where = "minibatch_stddev"
    check_floating(where, "x", x)
    if x.dim() < 2 or x.shape[0] == 0:
        raise RuntimeError(f"{where}: x must have shape [N, C, ...] with at least one sample, got {tuple(x.shape)}")
    n, c = x.shape[:2]
    for name, value in (("group_size", group_size), ("num_channels", num_channels)):
        if value is not None and not isinstance(value, int | torch.SymInt):
            raise TypeError(f"{where}: {name} must be a whole number, got {value!r}")
    group = n if group_size is None else min(group_size, n)
    if group < 1 or n % group != 0:
        raise RuntimeError(f"{where}: group_size must be at least 1 and divide the batch of {n}, got {group_size}")
    if num_channels < 1 or c % num_channels != 0 or c == 0:
        raise RuntimeError(f"{where}: num_channels must be at least 1 and divide the {c} channels, got {num_channels}")
    chosen = OP.select(impl, x)
    if chosen == "reference":
        return reference.minibatch_stddev(x, group, num_channels, _EPS)
    return _FORWARD(x, group, num_channels, chosen)


# --- implementations -------------------------------------------------------------------------------------------------


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Batch, channels, pixels."""
    return x.shape[0], x.shape[1], x.shape[2:].numel()


def _result(x: Tensor, num_channels: int) -> Tensor:
    """Room for x and its maps, channels_last where x is."""
    return empty((x.shape[0], x.shape[1] + num_channels, *x.shape[2:]), x, is_channels_last(x))


def _forward_kernel(call: Any) -> Any:
    def forward(x: Tensor, group_size: int, num_channels: int) -> Tensor:
        y = _result(x, num_channels)
        call()(workable(x), *_sizes(x), group_size, num_channels, _EPS, is_channels_last(x), y)
        return y

    return forward


def _backward_kernel(call: Any) -> Any:
    def backward(grad_y: Tensor, x: Tensor, group_size: int, num_channels: int) -> Tensor:
        dense, channels_last = workable(x), is_channels_last(x)
        grad_y = grad_y.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else grad_y.contiguous()
        grad_x = torch.empty_like(dense)
        call()(grad_y, dense, *_sizes(x), group_size, num_channels, _EPS, channels_last, grad_x)
        return grad_x if dense is x else torch.empty_like(x).copy_(grad_x)

    return backward


OP = Op(
    "minibatch_stddev",
    {
        "triton": Implementation(
            lambda x, *args, **kwargs: triton_refusal(x), lambda x, *args, **kwargs: triton_slower(x)
        ),
        "cpu": Implementation(lambda x, *args, **kwargs: cpu_refusal(x)),
    },
)

# --- registration ----------------------------------------------------------------------------------------------------


def _fake_forward(x: Tensor, group_size: int, num_channels: int, impl: str) -> Tensor:
    return _result(x, num_channels)


def _fake_backward(grad_y: Tensor, x: Tensor, group_size: int, num_channels: int, impl: str) -> Tensor:
    return torch.empty_like(x)


def _save_forward(ctx: Any, inputs: Any, output: Any) -> None:
    x, *ctx.config = inputs
    ctx.save_for_backward(x)


def _differentiate_forward(ctx: Any, grad_y: Tensor) -> Any:
    (x,) = ctx.saved_tensors
    return _BACKWARD(grad_y, x, *ctx.config), None, None, None


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    grad_y, x, ctx.group_size, ctx.num_channels, _ = inputs
    ctx.save_for_backward(grad_y, x)


def _differentiate_backward(ctx: Any, grad: Tensor) -> Any:
    def formula(grad_y: Tensor, x: Tensor) -> Tensor:
        return reference.minibatch_stddev_backward(grad_y, x, ctx.group_size, ctx.num_channels, _EPS)

    return *differentiate(formula, ctx.saved_tensors, (grad,)), None, None, None


_FORWARD = define(
    "minibatch_stddev(Tensor x, int group_size, int num_channels, str impl) -> Tensor",
    {
        "cpu": _forward_kernel(lambda: torch.ops.gencore_c.minibatch_stddev.default),
        "triton": _forward_kernel(triton_kernel("minibatch_stddev", "minibatch_stddev")),
    },
    _fake_forward,
    setup_context=_save_forward,
    backward=_differentiate_forward,
)
_BACKWARD = define(
    "minibatch_stddev_backward(Tensor grad_y, Tensor x, int group_size, int num_channels, str impl) -> Tensor",
    {
        "cpu": _backward_kernel(lambda: torch.ops.gencore_c.minibatch_stddev_backward.default),
        "triton": _backward_kernel(triton_kernel("minibatch_stddev", "minibatch_stddev_backward")),
    },
    _fake_backward,
    setup_context=_save_backward,
    backward=_differentiate_backward,
)
