"""A linear layer with its activation, on the convolution's register tile."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Implementation, Op, Predicate, Reason, cpu_refusal, triton_refusal
from gencore.ops._activation import CONV_ACTIVATIONS
from gencore.ops._autocast import autocast
from gencore.ops._checks import check_device, check_shape, check_tensor
from gencore.ops.conv import refusal, triton_is_slower
from gencore.ops.conv_checks import check_dtype
from gencore.ops.conv_core import CONVOLUTION, FUSED_IN_TRAINING
from gencore.processor import MKL_RUNS_AT_FULL_SPEED
from gencore.reference.activation import activate


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    impl: str = "auto",
) -> Tensor:
    r"""``activation(scale input weight^T + bias)`` in one pass.

    A row of the input is a pixel, and the layer a convolution with one tap: the same tile, packed weights and epilogue
    as :func:`gencore.functional.conv2d`, and gradients to any order. While gradients are recorded, ``silu`` runs as a
    second op.

    Args:
        input: ``[..., I]``; float32, float64, bfloat16 or float16. ``"auto"`` and ``"reference"`` take whatever PyTorch
            does: integers, complex numbers, a weight ``[I]``, a bias that expands to the result.
        weight: ``[O, I]``, dtype and device of ``input``.
        bias: ``[O]`` or None.
        scale: multiplies the products, ``[O]`` or one number: the 1 / sigma of spectral normalisation.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"``, ``"tanh"``, ``"sigmoid"`` or ``"silu"``.
        negative_slope: of ``leaky_relu``.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        ``[..., O]``, dtype of ``input``.

    Raises:
        TypeError: an argument is not a tensor.
        RuntimeError: shapes, dtypes or devices do not fit.
        ValueError: the activation is unknown.
    """
    input, weight, bias, scale = autocast(input, weight, bias, scale)
    _validate(input, weight, bias, scale, activation)
    chosen = OP.select(impl, input, weight, bias)
    if chosen == "reference":
        return reference.linear(input, weight, bias, scale, activation, negative_slope)
    fused = activation
    if (activation not in FUSED_IN_TRAINING or negative_slope < 0) and torch.is_grad_enabled():
        recorded = any(t is not None and t.requires_grad for t in (input, weight, bias, scale))
        fused = "identity" if recorded else activation
    rows = input.reshape(-1, input.shape[-1])
    geometry: tuple[list[int], ...] = ([], [], [], [])
    y = CONVOLUTION(rows, weight, bias, None, None, scale, *geometry, 1, False, fused, float(negative_slope), chosen)
    y = y.view(*input.shape[:-1], weight.shape[0])
    return y if fused == activation else activate(y, activation, negative_slope)


def _validate(input: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, activation: str) -> None:
    check_tensor("linear", "input", input)
    check_tensor("linear", "weight", weight)
    check_device("linear", "weight", weight, "input", input)
    check_dtype("linear", "weight", weight, input)
    if weight.dim() != 2 and (weight.dim() != 1 or scale is not None):
        raise RuntimeError(f"linear: weight must have 2 dimensions, got shape {tuple(weight.shape)}")
    if input.dim() < 1 or input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            f"linear: input must have shape [..., {weight.shape[-1]}] for a weight of shape {tuple(weight.shape)}, got "
            f"{tuple(input.shape)}"
        )
    if bias is not None:
        check_tensor("linear", "bias", bias)
        check_device("linear", "bias", bias, "input", input)
        check_dtype("linear", "bias", bias, input)
        if not _spreads(bias.shape, (*input.shape[:-1], *weight.shape[:-1])):
            check_shape("linear", "bias", bias, weight.shape[:-1])
    if scale is not None:
        check_tensor("linear", "scale", scale)
        check_device("linear", "scale", scale, "input", input)
        check_dtype("linear", "scale", scale, input)
        if scale.numel() != 1 or scale.dim() > 1:
            check_shape("linear", "scale", scale, (weight.shape[0],))
    if activation not in CONV_ACTIVATIONS or activation == "prelu":
        known = ", ".join(name for name in CONV_ACTIVATIONS if name != "prelu")
        raise ValueError(f"linear: activation must be one of {known}; got {activation!r}")


def _spreads(shape: Sequence[int], over: Sequence[int]) -> bool:
    """Whether a tensor of ``shape`` can be expanded to the other one."""
    tail = over[len(over) - len(shape) :]
    return len(shape) <= len(over) and all(a in (1, b) for a, b in zip(shape, tail, strict=True))


def _refusal(of_kernels: Predicate, input: Tensor, weight: Tensor, bias: Tensor | None = None, **kwargs: Any) -> Reason:
    if weight.dim() != 2:
        return "the weight has one dimension"
    if bias is not None and bias.shape != weight.shape[:1]:
        return f"bias has shape {tuple(bias.shape)}, not {tuple(weight.shape[:1])}"
    return refusal(of_kernels, input, weight, bias)


# A call of ours takes some 50 us more than PyTorch's: from here on the product makes up for it.
_FEW_PRODUCTS = 1 << 25


def _cpu_slower(input: Tensor, weight: Tensor, *args: object, **kwargs: object) -> Reason:
    products = input.numel() * weight.shape[0]
    if products < _FEW_PRODUCTS:
        return f"{products} products are too few to be worth the call"
    if input.dtype == torch.bfloat16:
        return "PyTorch's bfloat16 product runs at the speed of the hardware"
    if MKL_RUNS_AT_FULL_SPEED:
        return "PyTorch's product of matrices (MKL) is at home on this processor"
    return None


OP = Op(
    "linear",
    {
        "triton": Implementation(partial(_refusal, triton_refusal), triton_is_slower),
        "cpu": Implementation(partial(_refusal, cpu_refusal), _cpu_slower),
    },
)
