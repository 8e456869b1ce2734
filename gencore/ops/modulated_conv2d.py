"""StyleGAN2's convolution: input channels scaled by a style, output channels demodulated, noise and bias_act."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Op
from gencore.ops._checks import check_device, check_floating, check_shape, check_tensor
from gencore.ops.bias_act import check_bias, resolve_activation
from gencore.ops.upfirdn2d import check_filter, expand_padding
from gencore.reference.upfirdn2d import filter_size, resample_padding

Pair = int | Sequence[int]


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    *,
    demodulate: bool = True,
    up: int = 1,
    down: int = 1,
    padding: Pair = 0,
    resample_filter: Tensor | None = None,
    flip_weight: bool = True,
    input_gain: Tensor | float | None = None,
    noise: Tensor | None = None,
    noise_strength: Tensor | float | None = None,
    bias: Tensor | None = None,
    activation: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""A convolution whose weight every sample scales by its own style, and what follows it in a synthesis layer.

    .. math::
        w'_{noik} = s_{ni} w_{oik}, \qquad
        w''_{noik} = w'_{noik} \Big/ \sqrt{\textstyle\sum_{ik} w'^2_{noik} + 10^{-8}}, \qquad
        y_n = \mathrm{bias\_act}\big(\mathrm{conv}(x_n, w''_n) + \mathrm{strength} \cdot \mathrm{noise}_n\big)

    The weights of the samples are never formed (but by the reference): the input channels are scaled by the style and
    the output channels by the factor of the demodulation, which is one small matrix product of squared styles and
    squared weights. Up-sampling is a transposed convolution and then the filter. Gradients of all tensors but the
    filter exist to any order.

    Args:
        x: ``[N, I, H, W]``; float32, float64, bfloat16 or float16, any strides.
        weight: ``[O, I, k, l]``, of x's dtype.
        style: ``[N, I]``, of x's dtype.
        demodulate: scale the weights of every output channel of every sample to norm 1.
        up, down: factors of up- and down-sampling, at least 1.
        padding: with respect to the up-sampled image: one number, (x, y) or (x0, x1, y0, y1). ``k // 2``
            keeps the size.
        resample_filter: from :func:`setup_filter`; None: a single 1. What centres it is added to ``padding``.
        flip_weight: True correlates, as PyTorch's convolutions do; False convolves.
        input_gain: a factor of the input channels that the demodulation does not see: a number, ``[I]`` or ``[N, I]``.
        noise: ``[N, 1, H', W']``, ``[1, 1, H', W']`` or ``[H', W']``, added before the bias.
        noise_strength: factor of the noise, a number or a tensor of one element; None: 1.
        bias: ``[O]`` or None.
        activation, alpha, gain, clamp: as in :func:`bias_act`.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        ``[N, O, H', W']``, in dtype and layout of x.

    Raises:
        TypeError: an argument is not a tensor.
        RuntimeError: a shape, size, dtype or device that does not fit.
        ValueError: an unknown activation, a negative clamp, ``noise_strength`` without ``noise``.

    Reference:
        Karras, Laine, Aittala, Hellsten, Lehtinen and Aila, "Analyzing and improving the image quality of StyleGAN",
        2020, section 2.2 and appendix B.
    """
    where = "modulated_conv2d"
    check_floating(where, "x", x)
    paddings = check_resampled(where, x, weight, resample_filter, up, down, padding, 1)
    epilogue = resolve_activation(where, activation, alpha, gain, clamp, "activation")
    check_tensor(where, "style", style)
    check_device(where, "style", style, "x", x)
    check_shape(where, "style", style, (x.shape[0], x.shape[1]))
    check_dtype(where, "style", style, x)
    check_bias(where, "bias", bias, x, weight.shape[0])
    size = resampled_size(where, x, weight, resample_filter, up, down, paddings)
    input_gain = _input_gain(where, input_gain, x)
    noise = _noise(where, noise, noise_strength, x, size)
    OP.select(impl, x)
    return reference.modulated_conv2d(
        x,
        weight,
        style,
        demodulate,
        up,
        down,
        paddings,
        resample_filter,
        flip_weight,
        input_gain,
        noise,
        bias,
        *epilogue,
    )


def conv2d_resample(
    x: Tensor,
    weight: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Pair = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
    *,
    impl: str = "auto",
) -> Tensor:
    """A convolution with up-sampling by ``f`` before it and down-sampling by ``f`` after it.

    Where only one of them is asked for, the filter runs after a transposed convolution (up) or before a strided one
    (down): the same sums with a quarter of the operations.

    Args:
        x: ``[N, C, H, W]``.
        weight: ``[O, C / groups, k, l]``, of x's dtype.
        f: from :func:`setup_filter`; None: a single 1. What centres it is added to ``padding``.
        up, down: at least 1.
        padding: with respect to the up-sampled image: one number, (x, y) or (x0, x1, y0, y1).
        groups: divides C and O.
        flip_weight: True correlates, as PyTorch's convolutions do; False convolves.
        flip_filter: False convolves, True correlates.

    Returns:
        ``[N, O, H', W']``: ``H up / down`` pixels where ``padding`` is ``k // 2``.

    Raises:
        TypeError, RuntimeError: as :func:`conv2d` and :func:`upfirdn2d`.
    """
    where = "conv2d_resample"
    check_floating(where, "x", x)
    paddings = check_resampled(where, x, weight, f, up, down, padding, groups)
    resampled_size(where, x, weight, f, up, down, paddings)
    RESAMPLE.select(impl, x)
    return reference.conv2d_resample(x, weight, f, up, down, paddings, groups, flip_weight, flip_filter)


OP = Op("modulated_conv2d", {})
RESAMPLE = Op("conv2d_resample", {})

# --- checks ----------------------------------------------------------------------------------------------------------


def check_resampled(
    where: str, x: Tensor, weight: Tensor, f: Tensor | None, up: int, down: int, padding: Pair, groups: int
) -> list[int]:
    """Checks image, weight, filter and factors; the padding (x0, x1, y0, y1) with what centres the filter."""
    check_tensor(where, "weight", weight)
    check_device(where, "weight", weight, "x", x)
    check_dtype(where, "weight", weight, x)
    if x.dim() != 4 or x.shape[2] < 1 or x.shape[3] < 1:
        raise RuntimeError(f"{where}: x must have shape [N, C, H, W] with at least one pixel, got {tuple(x.shape)}")
    if groups < 1:
        raise RuntimeError(f"{where}: groups must be at least 1, got {groups}")
    if weight.dim() != 4 or weight.numel() == 0 or weight.shape[0] % groups != 0:
        raise RuntimeError(
            f"{where}: weight must have shape [O, {x.shape[1] // groups}, k, l], not empty, with O divisible by "
            f"{groups} groups; got {tuple(weight.shape)}"
        )
    if weight.shape[1] * groups != x.shape[1]:
        raise RuntimeError(
            f"{where}: x must have {weight.shape[1] * groups} channels for a weight of shape {tuple(weight.shape)} and "
            f"{groups} groups, got {x.shape[1]} (shape {tuple(x.shape)})"
        )
    check_filter(where, "resample_filter" if where == "modulated_conv2d" else "f", f, x)
    for name, factor in (("up", up), ("down", down)):
        if not isinstance(factor, int) or factor < 1:
            raise RuntimeError(f"{where}: {name} must be a whole number of at least 1, got {factor!r}")
    return resample_padding(f, up, down, expand_padding(where, padding))


def resampled_size(
    where: str, x: Tensor, weight: Tensor, f: Tensor | None, up: int, down: int, padding: Sequence[int]
) -> tuple[int, int]:
    """Height and width of the result."""
    sizes = []
    for axis, taps in enumerate(filter_size(f)):
        before, after = padding[2 * axis : 2 * axis + 2]
        length, kernel = x.shape[3 - axis], weight.shape[3 - axis]
        filters = (taps if up > 1 else 1) + (taps if down > 1 else 1) + kernel - 2
        if length * up + before + after < filters:
            raise RuntimeError(
                f"{where}: the padded image must not be smaller than weight and filters together ({filters} pixels): "
                f"{'width' if axis == 0 else 'height'} {length} with up {up} and padding ({before}, {after}), filter's "
                f"included, is {length * up + before + after}"
            )
        sizes.append((length * up + before + after - filters) // down + 1)
    return sizes[1], sizes[0]


def check_dtype(where: str, name: str, value: Tensor, x: Tensor) -> None:
    if value.dtype != x.dtype:
        raise RuntimeError(f"{where}: {name} must have x's dtype {x.dtype}, got {value.dtype}")


def _input_gain(where: str, value: Tensor | float | None, x: Tensor) -> Tensor | None:
    """[N or 1, I], or None."""
    if value is None:
        return None
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device) if isinstance(value, float | int) else value
    check_floating(where, "input_gain", value)
    check_device(where, "input_gain", value, "x", x)
    n, channels = x.shape[:2]
    if tuple(value.shape) not in ((), (channels,), (n, channels), (1, channels)):
        raise RuntimeError(
            f"{where}: input_gain must be a number or have shape [{channels}] or [{n}, {channels}], got "
            f"{tuple(value.shape)}"
        )
    return value.to(x.dtype).expand(1, channels) if value.dim() < 2 else value.to(x.dtype)


def _noise(
    where: str, noise: Tensor | None, strength: Tensor | float | None, x: Tensor, size: tuple[int, int]
) -> Tensor | None:
    """strength * noise as [N or 1, 1, H', W'], or None."""
    if noise is None:
        if strength is not None:
            raise ValueError(f"{where}: noise_strength is given, but no noise")
        return None
    check_floating(where, "noise", noise)
    check_device(where, "noise", noise, "x", x)
    if tuple(noise.shape) not in ((x.shape[0], 1, *size), (1, 1, *size), size):
        raise RuntimeError(
            f"{where}: noise must have shape [{x.shape[0]}, 1, {size[0]}, {size[1]}], [1, 1, {size[0]}, {size[1]}] or "
            f"[{size[0]}, {size[1]}], got {tuple(noise.shape)}"
        )
    noise = noise.to(x.dtype)
    if isinstance(strength, Tensor):
        check_floating(where, "noise_strength", strength)
        check_device(where, "noise_strength", strength, "x", x)
        if strength.numel() != 1:
            raise RuntimeError(f"{where}: noise_strength must have one element, got shape {tuple(strength.shape)}")
        noise = noise * strength.to(x.dtype).reshape(())
    elif strength is not None:
        noise = noise * strength
    return noise[None, None] if noise.dim() == 2 else noise
