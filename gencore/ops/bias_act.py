"""Bias, activation, gain and clamp in one pass; with a scale and noise, the epilogue of a modulated convolution."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Implementation, Op, cpu_refusal, triton_refusal, triton_slower
from gencore.ops._activation import EPILOGUE_ACTIVATIONS
from gencore.ops._checks import check_device, check_floating, check_number, check_shape, compute_dtype
from gencore.ops._layout import is_channels_last, laid_out
from gencore.ops._library import define, differentiate, triton_kernel


class Activation(NamedTuple):
    """An activation of StyleGAN: its name among the kernels' activations, its slope and its gain by default."""

    kernel: str
    alpha: float
    gain: float


# The gains keep the variance of a normal input about where it was (He initialisation).
ACTIVATIONS = {
    "linear": Activation("identity", 0.0, 1.0),
    "relu": Activation("relu", 0.0, 2.0**0.5),
    "lrelu": Activation("leaky_relu", 0.2, 2.0**0.5),
    "tanh": Activation("tanh", 0.0, 1.0),
    "sigmoid": Activation("sigmoid", 0.0, 1.0),
    "elu": Activation("elu", 0.0, 1.0),
    "selu": Activation("selu", 0.0, 1.0),
    "softplus": Activation("softplus", 0.0, 1.0),
    "swish": Activation("silu", 0.0, 2.0**0.5),
}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    r"""``clamp(gain * act(x + b))`` in one pass over x, and its gradient in another.

    .. math:: y = \min(\max(\mathrm{gain} \cdot \mathrm{act}(x + b_c),\, -\mathrm{clamp}),\, \mathrm{clamp})

    Nothing is kept for the backward but x and b. Gradients of x and b exist to any order; those beyond the first run on
    the same kernel for ``linear``, ``relu`` and ``lrelu``, else in plain PyTorch, at its speed. The gradient at a kink
    and at the clamp's bounds is PyTorch's.

    Args:
        x: any shape of at least one dimension; float32, float64, bfloat16 or float16; contiguous and channels_last are
            worked on as they are, other strides through a copy.
        b: ``[x.shape[dim]]`` or None, of x's dtype or a wider one.
        dim: of x, to which the elements of b belong.
        act: ``"linear"``, ``"relu"``, ``"lrelu"``, ``"tanh"``, ``"sigmoid"``, ``"elu"``, ``"selu"``, ``"softplus"`` or
            ``"swish"``.
        alpha: negative slope of ``lrelu``; None: 0.2.
        gain: None: sqrt(2) for ``relu``, ``lrelu`` and ``swish``, 1 for the others.
        clamp: bound of the result's magnitude, at least 0; None: none.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        y, with shape, dtype and layout of x.

    Raises:
        TypeError: x or b is not a tensor, or alpha, gain or clamp is one.
        RuntimeError: a shape, dtype or device that does not fit.
        IndexError: dim is not one of x's dimensions.
        ValueError: an unknown activation, or a negative clamp.

    Reference:
        Karras, Laine and Aila, "A style-based generator architecture for generative adversarial networks", 2019.
    """
    where = "bias_act"
    check_floating(where, "x", x)
    if not isinstance(dim, int):
        raise TypeError(f"{where}: dim must be a whole number, got {dim!r}")
    if not -x.dim() <= dim < x.dim():
        raise IndexError(f"{where}: dim must be one of x's {x.dim()} dimensions, got {dim}")
    check_bias(where, "b", b, x, x.shape[dim])
    epilogue = resolve_activation(where, act, alpha, gain, clamp)
    return scaled_bias_act(x, None, None, b, dim, *epilogue, OP.select(impl, x))


def scaled_bias_act(
    x: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    impl: str,
) -> Tensor:
    """``clamp(gain * act(x * scale + noise + b))`` by the implementation ``impl``: the end of a modulated convolution.

    Args:
        scale: ``[N, C]``. noise: ``[N or 1, 1, ...]``, one value a pixel. With one of them, ``dim`` must be 1.
        act, alpha, gain, clamp: from :func:`resolve_activation`.
    """
    if impl == "reference":
        return reference.bias_act(x, scale, noise, b, dim, act, alpha, gain, clamp)
    compute = compute_dtype(x.dtype)
    wide = (None if t is None else t.to(compute).contiguous() for t in (scale, noise, b))
    return _FORWARD(x, *wide, dim % x.dim(), act, alpha, gain, clamp, impl)


def kinked_gradients(
    grad_y: Tensor, y: Tensor, act: str, slope: float, with_bias: bool, impl: str
) -> tuple[Tensor, Tensor | None]:
    """Gradients of ``y = act(x + b)`` to x and, if wanted, to b, in one pass; not differentiable.

    ``act`` is ``"relu"``, or ``"leaky_relu"`` of a slope of at least 0: y tells on which side of the kink x + b was.
    """
    b = y.new_zeros((y.shape[1],), dtype=compute_dtype(y.dtype)) if with_bias else None
    with torch.no_grad():
        grad, _, _, grad_b = _BACKWARD(grad_y, y, None, None, b, 1, act, slope, 1.0, -1.0, impl)
    return grad, grad_b if with_bias else None


# --- checks ----------------------------------------------------------------------------------------------------------


def check_bias(where: str, name: str, b: Tensor | None, x: Tensor, size: int) -> None:
    if b is not None:
        check_floating(where, name, b)
        check_device(where, name, b, "x", x)
        check_shape(where, name, b, (size,))


def resolve_activation(
    where: str, act: str, alpha: float | None, gain: float | None, clamp: float | None, name: str = "act"
) -> tuple[str, float, float, float]:
    """Checks them and fills in the defaults: (the kernels' name, alpha, gain, clamp or -1)."""
    for option, value in (("alpha", alpha), ("gain", gain), ("clamp", clamp)):
        check_number(where, option, value)
    if not isinstance(act, str) or act not in ACTIVATIONS:
        raise ValueError(f"{where}: {name} must be one of {', '.join(ACTIVATIONS)}; got {act!r}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"{where}: clamp must be None or at least 0, got {clamp}")
    default = ACTIVATIONS[act]
    return (
        default.kernel,
        default.alpha if alpha is None else float(alpha),
        default.gain if gain is None else float(gain),
        -1.0 if clamp is None else float(clamp),
    )


# --- implementations -------------------------------------------------------------------------------------------------

_PIECEWISE_LINEAR = ("identity", "relu", "leaky_relu")


class _View(NamedTuple):
    """x as [batch, channels, pixels], or [batch, pixels, channels] if channels_last."""

    batch: int
    channels: int
    pixels: int
    channels_last: bool

    @classmethod
    def of(cls, x: Tensor, dim: int, per_sample: bool, per_channel: bool) -> _View:
        """``x`` is dense, and channels_last only if ``dim`` is 1 or nothing depends on the channel."""
        if not per_sample and not per_channel:
            return cls(1, 1, x.numel(), False)
        outer, channels, inner = x.shape[:dim].numel(), x.shape[dim], x.shape[dim + 1 :].numel()
        if inner == 1 or is_channels_last(x):
            return cls(outer, channels, inner, True) if per_sample else cls(1, channels, outer * inner, True)
        return cls(outer, channels, inner, False)


def _workable(x: Tensor, dim: int, b: Tensor | None) -> Tensor:
    """``x`` itself or a contiguous copy."""
    if x.is_contiguous() or (is_channels_last(x) and (dim == 1 or b is None)):
        return x
    return x.contiguous()


def _forward_kernel(call: Any) -> Any:
    def forward(
        x: Tensor,
        scale: Tensor | None,
        noise: Tensor | None,
        b: Tensor | None,
        dim: int,
        act: str,
        alpha: float,
        gain: float,
        clamp: float,
    ) -> Tensor:
        dense = _workable(x, dim, b)
        y = torch.empty_like(dense)
        view = _View.of(dense, dim, scale is not None or noise is not None, b is not None)
        config = (EPILOGUE_ACTIVATIONS[act], alpha, gain, clamp, view.channels_last)
        call()(dense, scale, noise, b, *view[:3], *config, y)
        return y if dense is x else torch.empty_like(x).copy_(y)

    return forward


def _backward_kernel(call: Any) -> Any:
    def backward(
        grad_y: Tensor,
        x: Tensor,
        scale: Tensor | None,
        noise: Tensor | None,
        b: Tensor | None,
        dim: int,
        act: str,
        alpha: float,
        gain: float,
        clamp: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dense = _workable(x, dim, b)
        grad_y, grad_x = laid_out(grad_y, dense), torch.empty_like(dense)
        view = _View.of(dense, dim, scale is not None or noise is not None, b is not None)
        config = (EPILOGUE_ACTIVATIONS[act], alpha, gain, clamp, view.channels_last)
        grad_scale = None if scale is None else torch.zeros_like(scale)
        grad_noise = None if noise is None else noise.new_zeros((x.shape[0], *noise.shape[1:]))
        grad_b = None if b is None else torch.zeros_like(b)
        call()(grad_y, dense, scale, noise, b, *view[:3], *config, grad_x, grad_scale, grad_noise, grad_b)
        if grad_noise is not None and noise is not None and grad_noise.shape != noise.shape:
            grad_noise = grad_noise.sum(0, keepdim=True)
        none = x.new_empty((0,), dtype=compute_dtype(x.dtype))
        grads = (none.clone() if g is None else g for g in (grad_scale, grad_noise, grad_b))
        return grad_x if dense is x else torch.empty_like(x).copy_(grad_x), *grads  # type: ignore[return-value]

    return backward


OP = Op(
    "bias_act",
    {
        "triton": Implementation(
            lambda x, *args, **kwargs: triton_refusal(x), lambda x, *args, **kwargs: triton_slower(x)
        ),
        "cpu": Implementation(lambda x, *args, **kwargs: cpu_refusal(x)),
    },
)

# --- registration ----------------------------------------------------------------------------------------------------


def _fake_forward(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(
    grad_y: Tensor, x: Tensor, scale: Tensor | None, noise: Tensor | None, b: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    none = x.new_empty((0,), dtype=compute_dtype(x.dtype))
    grads = (torch.empty_like(none if t is None else t) for t in (scale, noise, b))
    return torch.empty_like(x), *grads  # type: ignore[return-value]


def _save_forward(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.dim, ctx.act, ctx.alpha, ctx.gain, ctx.clamp, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_forward(ctx: Any, grad_y: Tensor) -> Any:
    tensors = ctx.saved_tensors
    config = (ctx.dim, ctx.act, ctx.alpha, ctx.gain, ctx.clamp, ctx.impl)
    grad_x, *grads = _BACKWARD(grad_y, *tensors, *config)
    grads = [None if t is None else g for t, g in zip(tensors[1:], grads, strict=True)]
    return (grad_x, *grads, *[None] * 6)


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.dim, ctx.act, ctx.alpha, ctx.gain, ctx.clamp, ctx.impl = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _differentiate_backward(ctx: Any, *grad_outputs: Any) -> Any:
    grad_y, x, scale, noise, b = ctx.saved_tensors
    config = (ctx.dim, ctx.act, ctx.alpha, ctx.gain, ctx.clamp)
    if ctx.act in _PIECEWISE_LINEAR and scale is None and noise is None:
        # The gradient is grad_y times one of two slopes, a linear map that is its own adjoint.
        grad = grad_outputs[0]
        if b is not None and grad_outputs[3] is not None:
            sums = grad_outputs[3].to(x.dtype).reshape([-1 if d == ctx.dim else 1 for d in range(x.dim())])
            grad = sums.expand_as(x) if grad is None else grad + sums
        if grad is None:
            return (None,) * 11
        return (_BACKWARD(grad, x, None, None, b, *config, ctx.impl)[0], *[None] * 10)

    def formula(*inputs: Any) -> tuple[Tensor, ...]:
        return tuple(g for g in reference.bias_act_backward(*(*inputs, *config)) if g is not None)

    wanted = [g for g, t in zip(grad_outputs, (x, scale, noise, b), strict=True) if t is not None]
    return (*differentiate(formula, (grad_y, x, scale, noise, b), wanted), *[None] * 6)


_CONFIG = "Tensor? scale, Tensor? noise, Tensor? b, int dim, str act, float alpha, float gain, float clamp, str impl"
_FORWARD = define(
    f"bias_act(Tensor x, {_CONFIG}) -> Tensor",
    {
        "cpu": _forward_kernel(lambda: torch.ops.gencore_c.bias_act.default),
        "triton": _forward_kernel(triton_kernel("bias_act", "bias_act")),
    },
    _fake_forward,
    setup_context=_save_forward,
    backward=_differentiate_forward,
)
_BACKWARD = define(
    f"bias_act_backward(Tensor grad_y, Tensor x, {_CONFIG}) "
    "-> (Tensor grad_x, Tensor grad_scale, Tensor grad_noise, Tensor grad_b)",
    {
        "cpu": _backward_kernel(lambda: torch.ops.gencore_c.bias_act_backward.default),
        "triton": _backward_kernel(triton_kernel("bias_act", "bias_act_backward")),
    },
    _fake_backward,
    setup_context=_save_backward,
    backward=_differentiate_backward,
)
