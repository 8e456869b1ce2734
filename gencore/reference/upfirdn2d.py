"""Oracle of ``upfirdn2d``: zeros between the pixels, padding, a depthwise convolution, every so many pixels kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gencore.reference._precision import in_float32


@in_float32
def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Sequence[int] = (1, 1),
    down: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """x [N, C, H, W]; f [h, w], or [taps] for both directions, or None; up, down (x, y); padding (x0, x1, y0, y1)."""
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n * c, 1, h, 1, w, 1), (0, up[0] - 1, 0, 0, 0, up[1] - 1))
    x = x.reshape(n, c, h * up[1], w * up[0])
    x0, x1, y0, y1 = padding
    x = F.pad(x, [max(p, 0) for p in padding])  # and negative padding crops
    x = x[:, :, max(-y0, 0) : x.shape[2] - max(-y1, 0), max(-x0, 0) : x.shape[3] - max(-x1, 0)]
    f = x.new_ones((1, 1)) if f is None else f.to(x.dtype)
    f = f if flip_filter else f.flip(list(range(f.dim())))  # conv2d correlates
    for one in [f[None, :], f[:, None]] if f.dim() == 1 else [f]:
        x = F.conv2d(x, one.expand(c, 1, *one.shape), groups=c) if c > 0 else x
    return (x * gain)[:, :, :: down[1], :: down[0]]


@in_float32
def conv2d_resample(
    x: Tensor,
    weight: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Up-sampling by ``f``, convolution, down-sampling by ``f``, in three steps; padding from `resample_padding`."""
    x = upfirdn2d(x, f if up > 1 else None, (up, up), (1, 1), padding, flip_filter, float(up * up))
    y = F.conv2d(x, weight if flip_weight else weight.flip([2, 3]), groups=groups)
    return upfirdn2d(y, f, (1, 1), (down, down), (0, 0, 0, 0), flip_filter) if down > 1 else y


def filter_size(f: Tensor | None) -> tuple[int, int]:
    """Width and height: numbers, though ``torch.jit.trace`` has tensors for sizes."""
    return (1, 1) if f is None else (int(f.shape[-1]), int(f.shape[0]))


def resample_padding(f: Tensor | None, up: int, down: int, padding: Sequence[int]) -> list[int]:
    """The padding (x0, x1, y0, y1) of a convolution, with what keeps up- and down-sampling by ``f`` centred."""
    result = []
    for size, (before, after) in zip(filter_size(f), (padding[:2], padding[2:]), strict=True):
        if up > 1:
            before, after = before + (size + up - 1) // 2, after + (size - up) // 2
        if down > 1:
            before, after = before + (size - down + 1) // 2, after + (size - down) // 2
        result += [before, after]
    return result


def setup_filter(
    f: Tensor | Sequence[float] | Sequence[Sequence[float]] | float | None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1.0,
    separable: bool | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Float32 taps, 1-D or 2-D, summing to ``gain`` (1-D: to its square root, because both directions take it)."""
    taps = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32)
    taps = taps[None] if taps.dim() == 0 else taps
    if separable is None:
        separable = taps.dim() == 1 and taps.numel() >= 8
    if taps.dim() == 1 and not separable:
        taps = torch.outer(taps, taps)
    if normalize:
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(list(range(taps.dim())))
    return (taps * gain ** (taps.dim() / 2)).to(device)
