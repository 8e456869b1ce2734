"""The convolution of an image of doubled pixels, and the one whose result is averaged over 2x2: one at a stride of 2.

A generator that doubles the pixels before its 3x3 convolution multiplies each of them four times with sums of the same
taps; a discriminator that averages after it computes what it then adds up. Both are convolutions of k + 1 taps at a
stride of 2, transposed or not, of a filter that a small product makes of the k taps: less than half of the products,
and no image in between.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gencore.dispatch import Implementation, Op, Reason, cpu_refusal, triton_refusal
from gencore.ops._autocast import autocast
from gencore.ops._checks import check_tensor
from gencore.ops._layout import is_channels_last
from gencore.ops.bias_act import check_bias
from gencore.ops.conv import conv2d, conv_transpose2d, refusal, triton_is_slower
from gencore.ops.conv_checks import check_epilogue
from gencore.ops.conv_packing import kept
from gencore.ops.linear import linear
from gencore.reference.conv import conv_epilogue


def upscale2d_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    slopes: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r""":func:`conv2d` of ``input`` with every pixel doubled in both directions, padded so that the size is kept.

    .. math:: y = \mathrm{act}\big(a \cdot \mathrm{conv}(\mathrm{nearest}_{2\times}(x), w) + b + r\big)

    On the CPU it is one transposed convolution at a stride of 2. Its filter, in one dimension
    :math:`(w_2,\, w_1 + w_2,\, w_0 + w_1,\, w_0)`, is made at every call, or kept where ``weight`` is not trained.
    Gradients exist to any order.

    Args:
        input: ``[N, C, H, W]``; dtypes and strides as :func:`conv2d` takes them.
        weight: ``[O, C, k, k]``, k odd.
        bias, scale, activation, negative_slope, slopes: as in :func:`conv2d`.
        residual: ``[N, O, 2H, 2W]``, added before the activation.
        impl: ``"auto"``, ``"reference"`` (two ops, the second by :func:`conv2d`), ``"cpu"`` or ``"triton"``; see
            :mod:`gencore.dispatch`. In 16 bits all are two ops: the filter's sums would be rounded.

    Returns:
        ``[N, O, 2H, 2W]``, in the layout that :func:`conv2d` gives.

    Raises:
        What :func:`conv2d` raises; RuntimeError: the filter is not square or its side even.

    Reference:
        Karras, Aila, Laine and Lehtinen, "Progressive Growing of GANs", 2018, whose code has it under this name.
    """
    input, weight, bias, scale, residual, slopes = autocast(input, weight, bias, scale, residual, slopes)
    side = _check("upscale2d_conv2d", input, weight)
    epilogue: dict[str, Any] = {
        "scale": scale,
        "residual": residual,
        "activation": activation,
        "negative_slope": negative_slope,
        "slopes": slopes,
    }
    chosen = UPSCALE.select(impl, input, weight, bias)
    if not _is_fused(chosen, input):
        doubled = F.interpolate(input, scale_factor=2.0, mode="nearest")
        return conv2d(doubled, weight, bias, 1, side // 2, **epilogue, impl=impl)
    wide = kept(_widen, weight, True, chosen).transpose(0, 1)
    return conv_transpose2d(input, wide, bias, 2, side // 2, **epilogue, impl=chosen)


def conv2d_downscale2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
    slopes: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""The mean over 2x2 pixels of a :func:`conv2d` that keeps the size, and what follows it.

    .. math:: y = \mathrm{act}\big(\mathrm{mean}_{2\times2}(a \cdot \mathrm{conv}(x, w)) + b + r\big)

    On the CPU it is one convolution at a stride of 2, whose filter is in one dimension
    :math:`(w_0,\, w_0 + w_1,\, w_1 + w_2,\, w_2) / 2`. Arguments are those of :func:`upscale2d_conv2d`.

    Args:
        residual: ``[N, O, H // 2, W // 2]``.

    Returns:
        ``[N, O, H // 2, W // 2]``: a last row or column that has no pair is left out, as by ``avg_pool2d``.
    """
    input, weight, bias, scale, residual, slopes = autocast(input, weight, bias, scale, residual, slopes)
    where = "conv2d_downscale2d"
    side = _check(where, input, weight)
    size = input.shape[2] // 2, input.shape[3] // 2
    check_epilogue(where, input, len(weight), size, scale, residual, activation, slopes)
    check_bias(where, "bias", bias, input, len(weight))
    chosen = DOWNSCALE.select(impl, input, weight, bias)
    if not _is_fused(chosen, input):
        sums = F.avg_pool2d(conv2d(input, weight, None, 1, side // 2, scale=scale, impl=impl), 2)
        return conv_epilogue(sums, 2, None, bias, residual, activation, negative_slope, slopes)
    return conv2d(
        input,
        kept(_widen, weight, False, chosen),
        bias,
        2,
        side // 2,
        scale=scale,
        residual=residual,
        activation=activation,
        negative_slope=negative_slope,
        slopes=slopes,
        impl=chosen,
    )


# --- implementations -------------------------------------------------------------------------------------------------


def _is_fused(chosen: str, input: Tensor) -> bool:
    return chosen != "reference" and input.dtype in (torch.float32, torch.float64)


def _widen(weight: Tensor, doubled: bool, impl: str) -> Tensor:
    """``[O, C, k + 1, k + 1]``: the filter of the one convolution, for doubled pixels turned round."""
    k = weight.shape[-1]
    pair = torch.eye(k, k + 1) + torch.eye(k, k + 1).roll(1, 1)  # tap i goes to i and i + 1
    spread = torch.kron(pair, pair).T.contiguous()
    spread = spread.flip(1) if doubled else spread / 4
    wide = linear(weight.flatten(2), spread.to(weight), impl=impl)
    return wide.unflatten(2, (k + 1, k + 1))


# Where the one convolution was measured to be faster, on two cores with AVX-512 (docs/ops/conv.md): its filter has 16/9
# of the numbers, which must be worth their while.
_MANY_PIXELS = 512  # of the smaller image
_SMALLEST_SIDE = 4
_FEWEST_CHANNELS = 32
# The mean of four results halves their rounding errors, but not those of the one sum in their place: over more channels
# than this it may err more than twice as much as PyTorch's two ops, in channels_last still less than they do.
_MOST_CHANNELS_DOWN = 128


def _slower(factor: int, input: Tensor, weight: Tensor, *args: Any) -> Reason:
    """``factor``: between the sides of ``input`` and those of the smaller image."""
    if input.dtype != torch.float32:
        return f"it was measured to be faster in float32 alone, not in {input.dtype}"
    if weight.shape[-1] != 3:
        return f"3x3 filters have minimal filtering, not {weight.shape[-1]}x{weight.shape[-1]}"
    height, width = input.shape[2] // factor, input.shape[3] // factor
    pixels = len(input) * height * width
    if pixels < _MANY_PIXELS or min(height, width) < _SMALLEST_SIDE:
        return f"{pixels} pixels are too few to be worth the larger filter"
    if factor == 2 and weight.shape[1] > _MOST_CHANNELS_DOWN and not is_channels_last(input):
        return (
            f"over {weight.shape[1]} channels of a contiguous image its rounding error may be more than twice PyTorch's"
        )
    if min(weight.shape[:2]) < _FEWEST_CHANNELS:
        return f"{min(weight.shape[:2])} channels leave vectors idle"
    return None


def _table(factor: int) -> dict[str, Implementation]:
    return {
        "triton": Implementation(partial(refusal, triton_refusal), triton_is_slower),
        "cpu": Implementation(partial(refusal, cpu_refusal), partial(_slower, factor)),
    }


UPSCALE = Op("upscale2d_conv2d", _table(1))
DOWNSCALE = Op("conv2d_downscale2d", _table(2))

# --- checks ----------------------------------------------------------------------------------------------------------


def _check(where: str, input: Tensor, weight: Tensor) -> int:
    """The filter's side. All else the convolutions check."""
    check_tensor(where, "input", input)
    check_tensor(where, "weight", weight)
    if input.dim() != 4:
        raise RuntimeError(f"{where}: input must have shape [N, C, H, W], got {tuple(input.shape)}")
    if weight.dim() != 4 or weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
        raise RuntimeError(f"{where}: weight must have shape [O, C, k, k] with k odd, got {tuple(weight.shape)}")
    return weight.shape[2]
