"""Pixel norm: every pixel's vector of channels divided by its root mean square."""

from __future__ import annotations

from torch import Tensor

from gencore import reference
from gencore.dispatch import Op
from gencore.ops._checks import check_floating


def pixel_norm(x: Tensor, dim: int = 1, eps: float = 1e-8, *, impl: str = "auto") -> Tensor:
    r"""Divide by the root mean square over ``dim``.

    .. math:: y = x \Big/ \sqrt{\mathrm{mean}_{\mathrm{dim}}(x^2) + \epsilon}

    The mean is held in float32 (float64 for float64). Derivatives exist to any order.

    Args:
        x: any shape of at least one dimension; float32, float64, bfloat16 or float16.
        dim: over which the mean goes: 1 for images and for latent codes ``[N, z]``.
        eps: added to the mean; not negative.
        impl: ``"auto"`` or ``"reference"``; see :mod:`gencore.dispatch`.

    Returns:
        y, with shape and dtype of x.

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
    OP.select(impl, x)
    return reference.pixel_norm(x, dim, eps)


OP = Op("pixel_norm", {})
