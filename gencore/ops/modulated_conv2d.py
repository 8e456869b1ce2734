"""StyleGAN2's convolution: input channels scaled by a style, output channels demodulated, noise and bias_act."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Implementation, Op, cpu_refusal, is_named, triton_refusal, triton_slower
from gencore.ops._autocast import autocast
from gencore.ops._checks import check_device, check_floating, check_shape, check_tensor, compute_dtype
from gencore.ops._library import is_recorded
from gencore.ops.bias_act import check_bias, resolve_activation, scaled_bias_act
from gencore.ops.conv import conv2d, conv_transpose2d
from gencore.ops.conv_modulated import convolve_modulated
from gencore.ops.conv_packing import kept
from gencore.ops.linear import linear
from gencore.ops.upfirdn2d import SLOPES, Epilogue, check_filter, expand_padding, filter_refusal, resample
from gencore.reference._precision import without_autocast
from gencore.reference.modulated_conv2d import DEMODULATION_EPS
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
    filter exist to any order; those beyond the first run in plain PyTorch for the scaling and the epilogue, at its
    speed.

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
    x, weight, style, input_gain, noise, bias = autocast(x, weight, style, input_gain, noise, bias)
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
    chosen = OP.select(impl, x, weight, style, resample_filter=resample_filter)
    resampling = (resample_filter, up, down, paddings)
    if chosen == "reference":
        arguments = (*resampling[1:], resample_filter, flip_weight, input_gain, noise, bias)
        return reference.modulated_conv2d(x, weight, style, demodulate, *arguments, *epilogue)
    conv_impl = _conv_impl(impl, chosen)
    factor = _demodulation(style, weight, conv_impl) if demodulate else None
    scale = style if input_gain is None else style.to(compute_dtype(x.dtype)) * input_gain
    wide = _widened(x, weight, size) if chosen == "cpu" else (x, weight)
    if chosen != "cpu" and x.dtype == torch.float16:
        weight, scale, factor = _levelled(weight, scale, factor)
        wide = x, weight
    recorded = is_recorded(x, weight, style, input_gain, noise, bias)
    x0, x1, y0, y1 = paddings
    one_pass = up > 1 or (x0 == x1 >= 0 and y0 == y1 >= 0)
    # Where no gradient is recorded, the last pass, a convolution's or a filter's, ends in the epilogue.
    fused = None
    if down == 1 and one_pass and chosen == "cpu" and not recorded and epilogue[0] in SLOPES:
        fused = Epilogue(factor, noise, bias, *epilogue)
    if fused is not None and up == 1:
        correlated = wide[1] if flip_weight else wide[1].flip([2, 3])
        return convolve_modulated(wide[0], correlated, scale, [y0, x0], list(size), fused).to(x.dtype)
    modulated = scaled_bias_act(wide[0], scale, None, None, 1, *_NOTHING, chosen)
    y = _resampled(modulated, wide[1], *resampling, 1, flip_weight, False, chosen, conv_impl, fused)
    if fused is None and not (factor is noise is bias is None and epilogue == _NOTHING):
        y = scaled_bias_act(y, factor, noise, bias, 1, *epilogue, chosen)
    return y.to(x.dtype)


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
    x, weight = autocast(x, weight)
    check_floating(where, "x", x)
    paddings = check_resampled(where, x, weight, f, up, down, padding, groups)
    resampled_size(where, x, weight, f, up, down, paddings)
    chosen = RESAMPLE.select(impl, x, weight, f)
    if chosen == "reference":
        return reference.conv2d_resample(x, weight, f, up, down, paddings, groups, flip_weight, flip_filter)
    conv_impl = _conv_impl(impl, chosen)
    return _resampled(x, weight, f, up, down, paddings, groups, flip_weight, flip_filter, chosen, conv_impl)


# --- implementations -------------------------------------------------------------------------------------------------

_NOTHING = ("identity", 0.0, 1.0, -1.0)  # for an epilogue: no activation, gain 1, no clamp


def _conv_impl(impl: str, chosen: str) -> str:
    """What runs the convolutions in here: on a GPU where nobody named Triton, whatever is best for a convolution.

    The CPU's own products of matrices have the same bits at any number of threads.
    """
    return chosen if chosen == "cpu" or is_named(impl) else "auto"


@without_autocast
def _demodulation(style: Tensor, weight: Tensor, conv_impl: str) -> Tensor:
    """The factors [N, O], from squared styles and the squared weights of pairs of channels, kept if not trained."""
    compute = compute_dtype(style.dtype)
    product = linear(style.to(compute).square(), kept(_energy, weight), impl=conv_impl)
    return (product + DEMODULATION_EPS).rsqrt()


def _energy(weight: Tensor) -> Tensor:
    return weight.to(compute_dtype(weight.dtype)).square().sum([2, 3])


def _widened(x: Tensor, weight: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Float16 is convolved in float32 in any case; there, no product with a large style overflows either. And on a few
    pixels the rounding of 16-bit results between the steps would not even out in the style's gradient."""
    narrow = x.dtype == torch.float16 or (x.dtype == torch.bfloat16 and size[0] * size[1] < 16)
    return (x.float(), weight.float()) if narrow else (x, weight)


def _levelled(weight: Tensor, scale: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, scale and factor of the same float16 result, without sums over the channels that overflow on the way.

    Weight and scale are divided by powers of two, so that no sum is more than the root of its terms' number times the
    image's largest pixel; the factor, in float32, makes up for it. (As in Karras et al., "Training Generative
    Adversarial Networks with Limited Data", 2020, whose norms are no powers of two, and round once more.)
    """
    level = _power_of_two(weight.detach().abs().amax()) * 2.0 ** math.ceil(math.log2(weight[0].numel()) / 2)
    levels = _power_of_two(scale.detach().abs().amax(1, keepdim=True))
    factor = weight.new_ones((len(scale), len(weight)), dtype=torch.float32) if factor is None else factor
    return (weight.float() / level).to(weight.dtype), scale / levels, factor * (levels * level)


def _power_of_two(x: Tensor) -> Tensor:
    """The least one above x, at least 0, float32."""
    return torch.exp2(torch.frexp(x.float()).exponent.float())


@without_autocast
def _resampled(
    x: Tensor,
    weight: Tensor,
    f: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    groups: int,
    flip_weight: bool,
    flip_filter: bool,
    impl: str,
    conv_impl: str,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """The checked call of ``conv2d_resample`` by convolutions and :func:`upfirdn2d`, whichever order costs least.

    ``epilogue``: what the last filter does on its way out; with ``up`` above 1 and ``down`` 1.
    """
    one = (1, 1)
    kh, kw = weight.shape[2:]
    x0, x1, y0, y1 = padding
    if up > 1 and (kh, kw) != one:
        # With zeros between the pixels a convolution is a transposed one, its weight turned round. That one leaves
        # off kernel - 1 pixels fewer at the image's ends, and up - 1 zeros behind the last pixel.
        turned = weight.flip([2, 3]) if flip_weight else weight
        turned = turned.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        pads = [x0 - kw + 1, x1 - kw + up, y0 - kh + 1, y1 - kh + up]
        crop = [max(0, min(-pads[2], -pads[3])), max(0, min(-pads[0], -pads[1]))]
        y = conv_transpose2d(x, turned, None, up, crop, 0, groups, impl=conv_impl)
        pads = [pads[0] + crop[1], pads[1] + crop[1], pads[2] + crop[0], pads[3] + crop[0]]
        y = resample(y, f, one, one, pads, flip_filter, float(up * up), impl, epilogue)
        return y if down == 1 else resample(y, f, one, (down, down), (0, 0, 0, 0), flip_filter, 1.0, impl)
    correlated = weight if flip_weight else weight.flip([2, 3])
    if (kh, kw) == one and (up > 1 or down > 1):
        # One pixel of the weight commutes with the filters: it runs where there are fewest pixels.
        if up == 1:
            x = resample(x, f, one, (down, down), padding, flip_filter, 1.0, impl)
        y = conv2d(x, correlated, None, 1, 0, 1, groups, impl=conv_impl)
        if up > 1:
            y = resample(y, f, (up, up), one, padding, flip_filter, float(up * up), impl, epilogue)
            y = y if down == 1 else resample(y, f, one, (down, down), (0, 0, 0, 0), flip_filter, 1.0, impl)
        return y
    if down > 1:
        x = resample(x, f, one, one, padding, flip_filter, 1.0, impl)
        x0 = x1 = y0 = y1 = 0
    elif x0 != x1 or y0 != y1 or x0 < 0 or y0 < 0:
        x = torch.nn.functional.pad(x, [x0, x1, y0, y1])
        x0 = x1 = y0 = y1 = 0
    return conv2d(x, correlated, None, down, (y0, x0), 1, groups, impl=conv_impl)


def _table(filter_of: Callable[..., Tensor | None]) -> dict[str, Implementation]:
    return {
        "triton": Implementation(
            lambda x, *args, **kwargs: triton_refusal(x) or filter_refusal(filter_of(x, *args, **kwargs)),
            lambda x, *args, **kwargs: triton_slower(x),
        ),
        "cpu": Implementation(
            lambda x, *args, **kwargs: cpu_refusal(x) or filter_refusal(filter_of(x, *args, **kwargs))
        ),
    }


OP = Op("modulated_conv2d", _table(lambda x, *args, resample_filter=None, **kwargs: resample_filter))
RESAMPLE = Op("conv2d_resample", _table(lambda x, weight, f=None, *args, **kwargs: f))

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
    if not any(_equal(value.shape, shape) for shape in ((), (channels,), (n, channels), (1, channels))):
        raise RuntimeError(
            f"{where}: input_gain must be a number or have shape [{channels}] or [{n}, {channels}], got "
            f"{tuple(value.shape)}"
        )
    return value.to(x.dtype).expand(1, channels) if value.dim() < 2 else value.to(x.dtype)


def _equal(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Size by size: while torch.compile traces, tuples that hold symbols are not found by ``in``."""
    return len(shape) == len(wanted) and all(a == b for a, b in zip(shape, wanted, strict=True))


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
    if not any(_equal(noise.shape, shape) for shape in ((x.shape[0], 1, *size), (1, 1, *size), size)):
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
