"""Conditional batch normalisation: batch norm whose gain and bias are those of a sample, with the activation."""

from __future__ import annotations

from torch import Tensor

from gencore import reference
from gencore.ops._activation import check_activation
from gencore.ops._checks import check_floating, check_tensor
from gencore.ops.norm_core import batch_norm, check_statistics, check_vector, norm_op


def conditional_batch_norm(
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "identity",
    negative_slope: float = 0.01,
    impl: str = "auto",
) -> Tensor:
    r"""``activation(gain * batch_norm(x) + bias)``, with a gain and a bias for every channel of every sample.

    .. math::
        y_n = \mathrm{act}\!\left(\gamma_{n,c}\, \frac{x_n - \mathrm{mean}_c}{\sqrt{\mathrm{var}_c + \epsilon}}
              + \beta_{n,c}\right)

    SNGAN looks gain and bias up by class; BigGAN makes them from the class embedding and a part of z, the gain as 1
    plus a linear map. The kernels are those of :func:`~gencore.functional.batch_norm_act`; gradients of x, gain and
    bias exist to any order.

    Args:
        x: ``[N, C, ...]``, 2-d to 5-d; dtypes and layouts as in :func:`~gencore.functional.batch_norm_act`.
        gain, bias: ``[N, C]``, x's dtype or float32.
        running_mean, running_var, training, momentum, eps: as in :func:`~gencore.functional.batch_norm_act`.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"``, ``"tanh"`` or ``"silu"``.
        negative_slope: of the leaky ReLU.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        y, with shape, dtype and layout of x.

    Raises:
        TypeError: an argument is not a tensor.
        RuntimeError: a shape, dtype or device that does not fit; evaluation without running statistics.
        ValueError: training with one value a channel, negative eps, an unknown activation, x not 2-d to 5-d.

    Reference:
        Dumoulin, Shlens and Kudlur, "A Learned Representation For Artistic Style", 2017; Brock, Donahue and Simonyan,
        "Large Scale GAN Training for High Fidelity Natural Image Synthesis", 2019, appendix B.
    """
    where = "conditional_batch_norm"
    check_floating(where, "x", x)
    if not 2 <= x.dim() <= 5:
        raise ValueError(f"{where}: x must have 2 to 5 dimensions, [N, C, ...], got {tuple(x.shape)}")
    if not eps >= 0:
        raise ValueError(f"{where}: eps must not be negative, got {eps}")
    check_activation(where, activation)
    for name, value in {"gain": gain, "bias": bias}.items():
        check_tensor(where, name, value)
        check_vector(where, name, value, x, per_sample=True)
    check_statistics(where, x, running_mean, running_var, training)
    chosen = OP.select(impl, x)
    running = running_mean, running_var
    if chosen == "reference":
        return reference.conditional_batch_norm(
            x, gain, bias, *running, training, momentum, eps, activation, negative_slope
        )
    return batch_norm(x, None, gain, bias, *running, training, momentum, eps, activation, negative_slope, chosen)


OP = norm_op("conditional_batch_norm")
