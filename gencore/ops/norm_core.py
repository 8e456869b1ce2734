"""What batch norm, conditional batch norm and instance norm share: one op, forward and backward, over [N, C, ...].

They differ in two things: over what the statistics are taken (the batch, or each image on its own), and whether weight
and bias belong to a channel, ``[C]``, or to a channel of a sample, ``[N, C]``. Everything else - kernels, fakes,
derivatives - is one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Implementation, Op, Reason, cpu_refusal, triton_refusal, triton_slower
from gencore.ops._activation import ACTIVATIONS
from gencore.ops._checks import check_device, check_shape, check_tensor, compute_dtype
from gencore.ops._layout import is_channels_last, laid_out, workable
from gencore.ops._library import define, differentiate, triton_kernel
from gencore.ops.norm_double_backward import affine_like, double_backward, has_kernel


def norm_op(name: str, least: int = 0) -> Op:
    """The table of implementations of one of the family; with fewer elements than ``least``, PyTorch is faster."""

    def cpu_slower(x: Tensor, *args: object, **kwargs: object) -> Reason:
        return f"{x.numel()} elements are too few to be worth the call" if x.numel() < least else None

    return Op(
        name,
        {
            "triton": Implementation(
                lambda x, *args, **kwargs: triton_refusal(x), lambda x, *args, **kwargs: triton_slower(x)
            ),
            "cpu": Implementation(lambda x, *args, **kwargs: cpu_refusal(x), cpu_slower),
        },
    )


def batch_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    negative_slope: float,
    impl: str,
    moments: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Statistics over the batch, or the running ones; weight and bias ``[C]`` or ``[N, C]``. Arguments are checked.

    ``moments``: the batch's mean and biased variance, where whoever made x has them; training does not take them again.
    """
    compute = compute_dtype(x.dtype)
    affine = _to(weight, compute), _to(bias, compute)
    config = training, False, eps, activation, negative_slope, impl
    if not training:
        return FORWARD(x, residual, *affine, _to(running_mean, compute), _to(running_var, compute), *config)[0]
    y, *found = FORWARD(x, residual, *affine, *(moments or (None, None)), *config)
    mean, var = moments or found
    count = x.numel() // max(x.shape[1], 1)
    with torch.no_grad():
        if running_mean is not None and count > 0:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None and count > 0:
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    return y


def instance_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    impl: str,
) -> Tensor:
    """Statistics over each image; weight and bias ``[C]`` or ``[N, C]``. Arguments are checked."""
    compute, shape = compute_dtype(x.dtype), x.shape[:2]
    w, b = (None if v is None else v.to(compute).expand(shape).contiguous() for v in (weight, bias))
    return FORWARD(x, residual, w, b, None, None, True, True, eps, activation, negative_slope, impl)[0]


# --- checks ----------------------------------------------------------------------------------------------------------


def check_vector(where: str, name: str, value: Tensor | None, x: Tensor, per_sample: bool = False) -> None:
    """``value`` is None or ``[C]``; with ``per_sample``, ``[N, C]``."""
    if value is not None:
        check_tensor(where, name, value)
        check_device(where, name, value, "x", x)
        check_shape(where, name, value, x.shape[:2] if per_sample else x.shape[1:2])


def check_statistics(
    where: str, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, training: bool
) -> None:
    check_vector(where, "running_mean", running_mean, x)
    check_vector(where, "running_var", running_var, x)
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


def _forward_kernel(call: Any) -> Any:
    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        training: bool,
        instance: bool,
        eps: float,
        activation: str,
        negative_slope: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dense = workable(x)
        y = torch.empty_like(dense)
        batch_mean = x.new_zeros(_statistics_shape(x, mean, instance), dtype=compute_dtype(x.dtype))
        batch_var = torch.zeros_like(batch_mean)
        used = batch_mean if mean is None else mean
        call()(
            dense,
            laid_out(residual, dense),
            weight,
            bias,
            used,
            batch_var if var is None else var,
            mean is None or var is None,
            affine_like(weight, bias, used).dim() == 2,
            instance,
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
        instance: bool,
        eps: float,
        activation: str,
        negative_slope: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dense = workable(x)
        grad_x = torch.empty_like(dense)
        wants_residual = residual is not None and activation != "identity"
        grad_residual = torch.empty_like(dense) if wants_residual else None
        affine = affine_like(weight, bias, mean)
        grad_weight, grad_bias = torch.zeros_like(affine), torch.zeros_like(affine)
        call()(
            laid_out(grad_y, dense),
            dense,
            laid_out(residual, dense),
            weight,
            bias,
            mean,
            var,
            training,
            affine.dim() == 2,
            instance,
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


# --- registration ----------------------------------------------------------------------------------------------------


def _statistics_shape(x: Tensor, mean: Tensor | None, instance: bool) -> tuple[int, ...]:
    """Of the mean and variance that the forward returns: nothing where they were given."""
    return (0,) if mean is not None else tuple(x.shape[:2] if instance else x.shape[1:2])


def _fake_forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    instance: bool,
    eps: float,
    activation: str,
    negative_slope: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(_statistics_shape(x, mean, instance), dtype=compute_dtype(x.dtype))
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
    instance: bool,
    eps: float,
    activation: str,
    negative_slope: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wants_residual = residual is not None and activation != "identity"
    grad_residual = torch.empty_like(x) if wants_residual else x.new_empty((0,))
    affine = affine_like(weight, bias, mean)
    return torch.empty_like(x), torch.empty_like(affine), torch.empty_like(affine), grad_residual


def _save_forward(ctx: Any, inputs: Any, output: Any) -> None:
    x, residual, weight, bias, mean, var, ctx.training, *ctx.config = inputs
    if mean is None:
        _, mean, var = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, residual, weight, bias, mean, var)


def _differentiate_forward(ctx: Any, grad_y: Tensor, _mean: Any, _var: Any) -> Any:
    x, residual, weight, bias, mean, var = ctx.saved_tensors
    grad_x, grad_weight, grad_bias, grad_residual = BACKWARD(
        grad_y, x, residual, weight, bias, mean, var, ctx.training, *ctx.config
    )
    if residual is not None and ctx.config[2] == "identity":
        grad_residual = grad_y
    return (
        grad_x,
        None if residual is None else grad_residual,
        None if weight is None else grad_weight,
        None if bias is None else grad_bias,
        *[None] * 8,
    )


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.training, instance, eps, activation, negative_slope, ctx.impl = inputs
    ctx.config = instance, eps, activation, negative_slope
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _differentiate_backward(ctx: Any, *grad_outputs: Any) -> Any:
    grad_y, x, residual, weight, bias, mean, var = ctx.saved_tensors
    if ctx.training and residual is None and has_kernel(ctx.impl, ctx.config[2], grad_outputs[0]):
        grads = double_backward(grad_outputs[:3], grad_y, x, weight, bias, mean, var, *ctx.config)
        return (*grads[:2], None, *grads[2:], *[None] * 11)

    def formula(*inputs: Any) -> tuple[Tensor, ...]:
        arguments = (*inputs, mean, var, ctx.training, *ctx.config)
        return reference.norm_act_backward(*arguments)

    wanted = [*grad_outputs[:3], grad_outputs[3] if residual is not None and ctx.config[2] != "identity" else None]
    return (*differentiate(formula, (grad_y, x, residual, weight, bias), wanted), *[None] * 8)


# The forward takes the statistics where mean and var are missing. `training` says that they are those of x, whoever
# took them, so that the backward goes through them.
FORWARD = define(
    "norm_act(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, bool training, "
    "bool instance, float eps, str activation, float negative_slope, str impl) -> (Tensor y, Tensor mean, Tensor var)",
    {
        "cpu": _forward_kernel(lambda: torch.ops.gencore_c.batch_norm_act.default),
        "triton": _forward_kernel(triton_kernel("batch_norm_act", "batch_norm_act")),
    },
    _fake_forward,
    setup_context=_save_forward,
    backward=_differentiate_forward,
)
BACKWARD = define(
    "norm_act_backward(Tensor grad_y, Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor mean, "
    "Tensor var, bool training, bool instance, float eps, str activation, float negative_slope, str impl) "
    "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    {
        "cpu": _backward_kernel(lambda: torch.ops.gencore_c.batch_norm_act_backward.default),
        "triton": _backward_kernel(triton_kernel("batch_norm_act", "batch_norm_act_backward")),
    },
    _fake_backward,
    setup_context=_save_backward,
    backward=_differentiate_backward,
)
