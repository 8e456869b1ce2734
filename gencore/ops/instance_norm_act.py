"""Instance normalisation with the activation that follows it, and an optional residual, as one op."""

from __future__ import annotations

from torch import Tensor

from gencore import reference
from gencore.ops._activation import check_activation
from gencore.ops._checks import check_floating, check_same, check_tensor
from gencore.ops.norm_core import check_vector, instance_norm, norm_op


def instance_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "identity",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""``activation(instance_norm(x) + residual)``: every channel of every sample by its own mean and variance.

    .. math::
        y_{n} = \mathrm{act}\!\left(w_c\, \frac{x_n - \mathrm{mean}_{n,c}}{\sqrt{\mathrm{var}_{n,c} + \epsilon}}
                + b_c + r_n\right)

    With weight and bias ``[N, C]`` this is adaptive instance norm (AdaIN): ``weight = style_scale + 1``,
    ``bias = style_bias``. The kernels are those of :func:`~gencore.functional.batch_norm_act`; gradients of x, weight,
    bias and residual exist to any order.

    Args:
        x: ``[N, C, ...]``, 3-d to 5-d; dtypes and layouts as in :func:`~gencore.functional.batch_norm_act`.
        weight, bias: ``[C]``, ``[N, C]`` or None (1 and 0); x's dtype or float32.
        eps: added to the variance (the biased one); not negative.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"``, ``"tanh"`` or ``"silu"``.
        negative_slope: of the leaky ReLU.
        residual: shape and dtype of x; added before the activation.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        y, with shape, dtype and layout of x.

    Raises:
        TypeError: an argument is not a tensor.
        RuntimeError: a shape, dtype or device that does not fit.
        ValueError: one value a channel of a sample, negative eps, an unknown activation, x not 3-d to 5-d.

    Reference:
        Ulyanov, Vedaldi and Lempitsky, "Instance Normalization", 2016; Huang and Belongie, "Arbitrary Style Transfer in
        Real-time with Adaptive Instance Normalization", 2017, equation 8.
    """
    where = "instance_norm_act"
    check_floating(where, "x", x)
    if not 3 <= x.dim() <= 5:
        raise ValueError(f"{where}: x must have 3 to 5 dimensions, [N, C, ...], got {tuple(x.shape)}")
    if not eps >= 0:
        raise ValueError(f"{where}: eps must not be negative, got {eps}")
    check_activation(where, activation)
    for name, value in {"weight": weight, "bias": bias}.items():
        if value is not None:
            check_tensor(where, name, value)
            check_vector(where, name, value, x, per_sample=value.dim() == 2)
    if residual is not None:
        check_same(where, "residual", residual, "x", x)
    if x.shape[2:].numel() == 1:
        raise ValueError(f"{where}: expected more than 1 spatial element, got input size {tuple(x.shape)}")
    chosen = OP.select(impl, x)
    if chosen == "reference":
        return reference.instance_norm_act(x, weight, bias, eps, activation, negative_slope, residual)
    return instance_norm(x, residual, weight, bias, eps, activation, negative_slope, chosen)


OP = norm_op("instance_norm_act")
