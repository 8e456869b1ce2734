"""Minibatch standard deviation: what lets a discriminator see that all samples look alike."""

from __future__ import annotations

from torch import Tensor

from gencore import reference
from gencore.dispatch import Op
from gencore.ops._checks import check_floating


def minibatch_stddev(x: Tensor, group_size: int | None = 4, num_channels: int = 1, *, impl: str = "auto") -> Tensor:
    r"""Append ``num_channels`` constant maps: how much the samples of a group differ, on average.

    With the samples of a group g = {n : n mod (N / G) = m} and a slice of the channels,

    .. math:: s_m = \mathrm{mean}_{chw} \sqrt{\mathrm{var}_{n \in g}(x_{nchw}) + 10^{-8}}

    with the biased variance. Statistics are held in float32 (float64 for float64). Derivatives exist to any order.
    ``num_channels=1`` is what progressive GANs have, too.

    Args:
        x: ``[N, C, H, W]`` (or any ``[N, C, ...]``); float32, float64, bfloat16 or float16.
        group_size: samples of a group; N where N is smaller; None: all of them. Divides N.
        num_channels: maps to append, each for its own slice of the channels. Divides C.
        impl: ``"auto"`` or ``"reference"``; see :mod:`gencore.dispatch`.

    Returns:
        ``[N, C + num_channels, H, W]``, in x's dtype.

    Raises:
        TypeError: x is not a tensor.
        RuntimeError: a shape or dtype that does not fit; sizes that do not divide N or C.

    Reference:
        Karras, Aila, Laine and Lehtinen, "Progressive growing of GANs", 2018, section 3.
    """
    where = "minibatch_stddev"
    check_floating(where, "x", x)
    if x.dim() < 2 or x.shape[0] == 0:
        raise RuntimeError(f"{where}: x must have shape [N, C, ...] with at least one sample, got {tuple(x.shape)}")
    n, c = x.shape[:2]
    group = n if group_size is None else min(group_size, n)
    if group < 1 or n % group != 0:
        raise RuntimeError(f"{where}: group_size must be at least 1 and divide the batch of {n}, got {group_size}")
    if num_channels < 1 or c % num_channels != 0 or c == 0:
        raise RuntimeError(f"{where}: num_channels must be at least 1 and divide the {c} channels, got {num_channels}")
    OP.select(impl, x)
    return reference.minibatch_stddev(x, group, num_channels)


OP = Op("minibatch_stddev", {})
