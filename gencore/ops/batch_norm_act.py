"""Batch normalisation with the activation that follows it, and an optional residual, as one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Implementation, Op, Reason, cpu_refusal, triton_refusal, triton_slower
from gencore.ops._activation import ACTIVATIONS, check_activation
from gencore.ops._checks import check_device, check_floating, check_same, check_shape, check_tensor, compute_dtype
from gencore.ops._library import define, differentiate


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "identity",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""``activation(batch_norm(x) + residual)`` in two passes over x, one where a channel fits in the cache.

    .. math::
        y = \mathrm{act}\!\left(\frac{x - \mathrm{mean}_c}{\sqrt{\mathrm{var}_c + \epsilon}}\, w_c + b_c + r\right)

    The backward keeps x, the mean and the variance, works the activation's gradient out anew, and folds it into its
    own statistics pass. Gradients of x, weight, bias and residual exist to any order. Statistics are two-pass, merged
    in float64, and the same bits at any number of threads.

    Args:
        x: ``[N, C, ...]``, 2-d to 5-d; float32, float64, bfloat16 or float16; contiguous and channels_last are worked
            on as they are, other strides through a copy.
        weight, bias: ``[C]`` or None (1 and 0).
        running_mean, running_var: ``[C]`` or None. Training moves them towards the batch's mean and unbiased variance
            by ``momentum``, in place; evaluation normalises with them.
        training: normalise with the batch's statistics (biased variance).
        momentum: weight of the new value in the running statistics, 0..1.
        eps: added to the variance; not negative.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"``, ``"tanh"`` or ``"silu"``.
        negative_slope: of the leaky ReLU.
        residual: shape and dtype of x; added before the activation.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        y, with shape, dtype and layout of x.

    Raises:
        TypeError: an argument is not a tensor.
        RuntimeError: a shape, dtype or device that does not fit; evaluation without running statistics.
        ValueError: training with one value a channel, negative eps, an unknown activation, x not 2-d to 5-d.

    Reference:
        Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 1.
    """
    _validate(x, weight, bias, running_mean, running_var, training, eps, activation, residual)
    chosen = OP.select(impl, x)
    if chosen == "reference":
        return reference.batch_norm_act(
            x, weight, bias, running_mean, running_var, training, momentum, eps, activation, negative_slope, residual
        )
    compute = compute_dtype(x.dtype)
    w, b = _to(weight, compute), _to(bias, compute)
    if not training:
        mean, var = _to(running_mean, compute), _to(running_var, compute)
        return _FORWARD(x, residual, w, b, mean, var, eps, activation, negative_slope, chosen)[0]
    y, mean, var = _FORWARD(x, residual, w, b, None, None, eps, activation, negative_slope, chosen)
    count = x.numel() // max(x.shape[1], 1)
    with torch.no_grad():
        if running_mean is not None and count > 0:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None and count > 0:
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    return y


def _validate(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    activation: str,
    residual: Tensor | None,
) -> None:
    where = "batch_norm_act"
    check_floating(where, "x", x)
    if not 2 <= x.dim() <= 5:
        raise ValueError(f"{where}: x must have 2 to 5 dimensions, [N, C, ...], got {tuple(x.shape)}")
    if eps < 0:
        raise ValueError(f"{where}: eps must not be negative, got {eps}")
    check_activation(where, activation)
    named = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, value in named.items():
        if value is not None:
            check_tensor(where, name, value)
            check_device(where, name, value, "x", x)
            check_shape(where, name, value, (x.shape[1],))
    if residual is not None:
        check_same(where, "residual", residual, "x", x)
    if training:
        if x.numel() == x.shape[1] and x.numel() > 0:
            raise ValueError(
                f"{where}: expected more than 1 value per channel when training, got input size {tuple(x.shape)}"
            )
    elif running_mean is None or running_var is None:
        raise RuntimeError(f"{where}: running_mean and running_var must be given when training=False")


def _to(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return value if value is None else value.to(dtype).contiguous()


# --- implementations -------------------------------------------------------------------------------------------------


def is_channels_last(x: Tensor) -> bool:
    """Whether the memory of ``[N, C, ...]`` runs over the channels first, densely."""
    return x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def _workable(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def _laid_out(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """``tensor`` with the strides of ``like``, a copy only where they differ."""
    if tensor is None or tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like).copy_(tensor)


def _forward_kernel(call: Any) -> Any:
    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        eps: float,
        activation: str,
        negative_slope: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dense = _workable(x)
        y = torch.empty_like(dense)
        training = mean is None or var is None
        batch_mean = x.new_zeros((x.shape[1] if training else 0,), dtype=compute_dtype(x.dtype))
        batch_var = torch.zeros_like(batch_mean)
        call()(
            dense,
            _laid_out(residual, dense),
            weight,
            bias,
            batch_mean if mean is None else mean,
            batch_var if var is None else var,
            training,
            eps,
            ACTIVATIONS[activation],
            negative_slope,
            is_channels_last(dense),
            y,
        )
        return (y if dense is x else torch.empty_like(x).copy_(y)), batch_mean, batch_var

    return forward


def _backward_kernel(call: Any) -> Any:
    def backward(
        grad_y: Tensor,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        training: bool,
        eps: float,
        activation: str,
        negative_slope: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dense = _workable(x)
        grad_x = torch.empty_like(dense)
        wants_residual = residual is not None and activation != "identity"
        grad_residual = torch.empty_like(dense) if wants_residual else None
        grad_weight, grad_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        call()(
            _laid_out(grad_y, dense),
            dense,
            _laid_out(residual, dense),
            weight,
            bias,
            mean,
            var,
            training,
            eps,
            ACTIVATIONS[activation],
            negative_slope,
            is_channels_last(dense),
            grad_x,
            grad_residual,
            grad_weight,
            grad_bias,
        )
        if dense is not x:
            grad_x = torch.empty_like(x).copy_(grad_x)
            grad_residual = None if grad_residual is None else torch.empty_like(x).copy_(grad_residual)
        return grad_x, grad_weight, grad_bias, x.new_empty((0,)) if grad_residual is None else grad_residual

    return backward


def _triton(name: str) -> Any:
    def call() -> Any:
        import gencore.kernels.batch_norm_act as kernels

        return getattr(kernels, name)

    return call


# Up to here PyTorch's calls, which cost a few microseconds where ours cost thirty, are back first.
_FEW_ELEMENTS = 1 << 18


def _cpu_slower(x: Tensor, *args: object, **kwargs: object) -> Reason:
    return f"{x.numel()} elements are too few to be worth the call" if x.numel() < _FEW_ELEMENTS else None


OP = Op(
    "batch_norm_act",
    {
        "triton": Implementation(
            lambda x, *args, **kwargs: triton_refusal(x), lambda x, *args, **kwargs: triton_slower(x)
        ),
        "cpu": Implementation(lambda x, *args, **kwargs: cpu_refusal(x), _cpu_slower),
    },
)

# --- registration ----------------------------------------------------------------------------------------------------


def _fake_forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[1] if mean is None else 0
    statistics = x.new_empty((channels,), dtype=compute_dtype(x.dtype))
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def _fake_backward(
    grad_y: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    activation: str,
    negative_slope: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wants_residual = residual is not None and activation != "identity"
    grad_residual = torch.empty_like(x) if wants_residual else x.new_empty((0,))
    return torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean), grad_residual


def _save_forward(ctx: Any, inputs: Any, output: Any) -> None:
    x, residual, weight, bias, mean, var, *ctx.config = inputs
    ctx.training = mean is None
    if ctx.training:
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(x, residual, weight, bias, mean, var)


def _differentiate_forward(ctx: Any, grad_y: Tensor, _mean: Any, _var: Any) -> Any:
    x, residual, weight, bias, mean, var = ctx.saved_tensors
    grad_x, grad_weight, grad_bias, grad_residual = _BACKWARD(
        grad_y, x, residual, weight, bias, mean, var, ctx.training, *ctx.config
    )
    if residual is not None and ctx.config[1] == "identity":
        grad_residual = grad_y
    return (
        grad_x,
        None if residual is None else grad_residual,
        None if weight is None else grad_weight,
        None if bias is None else grad_bias,
        *[None] * 6,
    )


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.training, eps, activation, negative_slope, _ = inputs
    ctx.config = eps, activation, negative_slope
    ctx.save_for_backward(*tensors)


def _differentiate_backward(ctx: Any, *grad_outputs: Any) -> Any:
    grad_y, x, residual, weight, bias, mean, var = ctx.saved_tensors
    eps, activation, negative_slope = ctx.config

    def formula(*inputs: Any) -> tuple[Tensor, ...]:
        config = (mean, var, ctx.training, eps, activation, negative_slope)
        return reference.batch_norm_act_backward(*(*inputs, *config))

    wanted = [*grad_outputs[:3], grad_outputs[3] if residual is not None and activation != "identity" else None]
    return (*differentiate(formula, (grad_y, x, residual, weight, bias), wanted), *[None] * 7)


_FORWARD = define(
    "batch_norm_act(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, float eps, "
    "str activation, float negative_slope, str impl) -> (Tensor y, Tensor mean, Tensor var)",
    {
        "cpu": _forward_kernel(lambda: torch.ops.gencore_c.batch_norm_act.default),
        "triton": _forward_kernel(_triton("batch_norm_act")),
    },
    _fake_forward,
    setup_context=_save_forward,
    backward=_differentiate_forward,
)
_BACKWARD = define(
    "batch_norm_act_backward(Tensor grad_y, Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor mean, "
    "Tensor var, bool training, float eps, str activation, float negative_slope, str impl) "
    "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    {
        "cpu": _backward_kernel(lambda: torch.ops.gencore_c.batch_norm_act_backward.default),
        "triton": _backward_kernel(_triton("batch_norm_act_backward")),
    },
    _fake_backward,
    setup_context=_save_backward,
    backward=_differentiate_backward,
)
