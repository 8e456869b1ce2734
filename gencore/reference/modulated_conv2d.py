"""Oracle of ``modulated_conv2d``: a weight for every sample, as the paper writes it, in one grouped convolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gencore.reference._precision import in_float32
from gencore.reference.bias_act import bias_act
from gencore.reference.upfirdn2d import conv2d_resample

DEMODULATION_EPS = 1e-8


@in_float32
def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    demodulate: bool,
    up: int,
    down: int,
    padding: Sequence[int],
    resample_filter: Tensor | None,
    flip_weight: bool,
    input_gain: Tensor | None,
    noise: Tensor | None,
    bias: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    """x [N, I, H, W], weight [O, I, k, l], style [N, I], input_gain [N or 1, I], noise [N or 1, 1, ...], bias [O]."""
    n, o = x.shape[0], weight.shape[0]
    w = weight * style[:, None, :, None, None]
    if demodulate:
        w = w * (w.square().sum([2, 3, 4], keepdim=True) + DEMODULATION_EPS).rsqrt()
    if input_gain is not None:
        w = w * input_gain[:, None, :, None, None]
    resample = (resample_filter, up, down, padding)
    if n == 0:  # a grouped convolution of no group does not exist
        y = conv2d_resample(x, weight, *resample)
    else:
        y = conv2d_resample(x.reshape(1, -1, *x.shape[2:]), w.flatten(0, 1), *resample, n, flip_weight)
        y = y.reshape(n, o, *y.shape[2:])
    return bias_act(y, None, noise, bias, 1, act, alpha, gain, clamp)
