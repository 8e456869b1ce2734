"""Pixel norm: every pixel's vector of channels divided by its root mean square."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Implementation, Op, cpu_refusal, triton_refusal, triton_slower
from gencore.ops._checks import check_floating
from gencore.ops._layout import is_channels_last, laid_out
from gencore.ops._library import define, differentiate, triton_kernel


def pixel_norm(x: Tensor, dim: int = 1, eps: float = 1e-8, *, impl: str = "auto") -> Tensor:
    r"""Divide by the root mean square over ``dim``.

    .. math:: y = x \Big/ \sqrt{\mathrm{mean}_{\mathrm{dim}}(x^2) + \epsilon}

    The mean is held in float32 (float64 for float64). Nothing is kept for the backward but x. Derivatives exist to any
    order.

    Args:
        x: any shape of at least one dimension; float32, float64, bfloat16 or float16; contiguous is worked on as it is,
            and so is channels_last with ``dim=1``; other strides through a copy.
        dim: over which the mean goes: 1 for images and for latent codes ``[N, z]``.
        eps: added to the mean; not negative.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        y, with shape, dtype and layout of x.

    Raises:
        TypeError: x is not a tensor.
        RuntimeError: x does not hold floating-point numbers.
        IndexError: dim is not one of x's dimensions.
        ValueError: negative eps.

    Reference:
        Karras, Aila, Laine and Lehtinen, "Progressive growing of GANs", 2018, section 4.2.
    """
    where = "pixel_norm"
    check_floating(where, "x", x)
    if not -x.dim() <= dim < x.dim():
        raise IndexError(f"{where}: dim must be one of x's {x.dim()} dimensions, got {dim}")
    if not eps >= 0:
        raise ValueError(f"{where}: eps must not be negative, got {eps}")
    chosen = OP.select(impl, x)
    if chosen == "reference":
        return reference.pixel_norm(x, dim, eps)
    return _FORWARD(x, dim % x.dim(), eps, chosen)


# --- implementations -------------------------------------------------------------------------------------------------


def _view(x: Tensor, dim: int) -> tuple[Tensor, int, int, int]:
    """``x``, or a contiguous copy, and what its memory is: [outer, channels, inner]."""
    channels = x.shape[dim]
    if dim == 1 and is_channels_last(x):
        return x, x.shape[0] * x.shape[2:].numel(), channels, 1
    return x.contiguous(), x.shape[:dim].numel(), channels, x.shape[dim + 1 :].numel()


def _forward_kernel(call: Any) -> Any:
    def forward(x: Tensor, dim: int, eps: float) -> Tensor:
        dense, *sizes = _view(x, dim)
        y = torch.empty_like(dense)
        call()(dense, *sizes, eps, y)
        return y if dense is x else torch.empty_like(x).copy_(y)

    return forward


def _backward_kernel(call: Any) -> Any:
    def backward(grad_y: Tensor, x: Tensor, dim: int, eps: float) -> Tensor:
        dense, *sizes = _view(x, dim)
        grad_y, grad_x = laid_out(grad_y, dense), torch.empty_like(dense)
        call()(grad_y, dense, *sizes, eps, grad_x)
        return grad_x if dense is x else torch.empty_like(x).copy_(grad_x)

    return backward


OP = Op(
    "pixel_norm",
    {
        "triton": Implementation(
            lambda x, *args, **kwargs: triton_refusal(x), lambda x, *args, **kwargs: triton_slower(x)
        ),
        "cpu": Implementation(lambda x, *args, **kwargs: cpu_refusal(x)),
    },
)

# --- registration ----------------------------------------------------------------------------------------------------


def _fake_forward(x: Tensor, dim: int, eps: float, impl: str) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(grad_y: Tensor, x: Tensor, dim: int, eps: float, impl: str) -> Tensor:
    return torch.empty_like(x)


def _save_forward(ctx: Any, inputs: Any, output: Any) -> None:
    x, *ctx.config = inputs
    ctx.save_for_backward(x)


def _differentiate_forward(ctx: Any, grad_y: Tensor) -> Any:
    (x,) = ctx.saved_tensors
    return _BACKWARD(grad_y, x, *ctx.config), None, None, None


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    grad_y, x, *ctx.config = inputs
    ctx.save_for_backward(grad_y, x)


def _differentiate_backward(ctx: Any, grad: Tensor) -> Any:
    grad_y, x = ctx.saved_tensors
    dim, eps, impl = ctx.config
    (by_x,) = differentiate(lambda x: reference.pixel_norm_backward(grad_y, x, dim, eps), (x,), (grad,))
    # The gradient is a linear map of grad_y that is its own adjoint.
    return _BACKWARD(grad, x, dim, eps, impl), by_x, None, None, None


_FORWARD = define(
    "pixel_norm(Tensor x, int dim, float eps, str impl) -> Tensor",
    {
        "cpu": _forward_kernel(lambda: torch.ops.gencore_c.pixel_norm.default),
        "triton": _forward_kernel(triton_kernel("pixel_norm", "pixel_norm")),
    },
    _fake_forward,
    setup_context=_save_forward,
    backward=_differentiate_forward,
)
_BACKWARD = define(
    "pixel_norm_backward(Tensor grad_y, Tensor x, int dim, float eps, str impl) -> Tensor",
    {
        "cpu": _backward_kernel(lambda: torch.ops.gencore_c.pixel_norm_backward.default),
        "triton": _backward_kernel(triton_kernel("pixel_norm", "pixel_norm_backward")),
    },
    _fake_backward,
    setup_context=_save_backward,
    backward=_differentiate_backward,
)
