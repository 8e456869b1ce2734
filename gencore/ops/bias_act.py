"""Bias, activation, gain and clamp in one pass; with a scale and noise, the epilogue of a modulated convolution."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gencore import reference
from gencore.dispatch import Op
from gencore.ops._checks import check_device, check_floating, check_shape


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

    Nothing is kept for the backward but x and b. Gradients of x and b exist to any order; the gradient at a kink and
    at the clamp's bounds is PyTorch's.

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
        TypeError: x or b is not a tensor.
        RuntimeError: a shape, dtype or device that does not fit.
        IndexError: dim is not one of x's dimensions.
        ValueError: an unknown activation, or a negative clamp.

    Reference:
        Karras, Laine and Aila, "A style-based generator architecture for generative adversarial networks", 2019.
    """
    where = "bias_act"
    check_floating(where, "x", x)
    if not -x.dim() <= dim < x.dim():
        raise IndexError(f"{where}: dim must be one of x's {x.dim()} dimensions, got {dim}")
    check_bias(where, "b", b, x, x.shape[dim])
    epilogue = resolve_activation(where, act, alpha, gain, clamp)
    OP.select(impl, x)
    return reference.bias_act(x, None, None, b, dim, *epilogue)


OP = Op("bias_act", {})


def check_bias(where: str, name: str, b: Tensor | None, x: Tensor, size: int) -> None:
    if b is not None:
        check_floating(where, name, b)
        check_device(where, name, b, "x", x)
        check_shape(where, name, b, (size,))


def resolve_activation(
    where: str, act: str, alpha: float | None, gain: float | None, clamp: float | None, name: str = "act"
) -> tuple[str, float, float, float]:
    """Checks them and fills in the defaults: (the kernels' name, alpha, gain, clamp or -1)."""
    if act not in ACTIVATIONS:
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
