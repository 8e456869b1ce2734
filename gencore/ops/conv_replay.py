"""A convolution of a layer at rest, called again with an image of the same kind.

What Python finds out at every call (the implementation, the sizes, the panels, how a norm folds into the epilogue)
takes as long as a convolution of one small image. For a weight that was put to rest it is found out once, and looked up
by everything that it depends on: where any of that has changed, it is found out anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gencore.dispatch import current_backend
from gencore.ops._activation import CONV_ACTIVATIONS
from gencore.ops._checks import compute_dtype
from gencore.ops._layout import empty, workable
from gencore.ops._library import is_watched
from gencore.ops.conv_core import gives_channels_last, output_channels
from gencore.ops.conv_line import line_of
from gencore.ops.conv_packing import PIECES, Packed, calls_of
from gencore.ops.conv_winograd import may_be_less_exact, winograd_scheme

_MOST_CALLS = 8  # kinds of images for which a weight's convolution is noted


class _Call(NamedTuple):
    settings: tuple[Any, ...]
    tensors: list[Any]  # weak references
    state: tuple[Any, ...]
    run: Callable[[Tensor], Tensor | None]


def recall(x: Tensor, tensors: Sequence[Tensor | None], settings: tuple[Any, ...]) -> Tensor | None:
    """The result, if :func:`remember` has noted the convolution for such an image, these tensors and these settings.

    Args:
        x: the image. tensors: all others that the result depends on, the weight first.
        settings: whatever else it depends on, to be compared.
    """
    calls = None if tensors[0] is None else calls_of(tensors[0])
    if not calls or _is_out_of_the_ordinary(x):
        return None
    call = calls.get(_kind(x))
    if call is None or call.settings != settings:
        return None
    given = [t for t in tensors if t is not None]
    if len(given) != len(call.tensors) or any(r() is not t for r, t in zip(call.tensors, given, strict=True)):
        return None
    return call.run(x) if call.state == _state(given) else None


def remember(
    x: Tensor,
    tensors: Sequence[Tensor | None],
    settings: tuple[Any, ...],
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    out_size: list[int],
    groups: int,
    transposed: bool,
    activation: str,
    negative_slope: float,
) -> None:
    """Note a convolution by the CPU's kernel, for :func:`recall`; nothing, where the weight is not at rest."""
    calls = None if tensors[0] is None else calls_of(tensors[0])
    if calls is None or _is_out_of_the_ordinary(x):
        return
    given = [t for t in tensors if t is not None]
    if x.dtype == torch.float16 or workable(x) is not x or any(t.is_inference() for t in given):
        return
    geometry = (stride, padding, dilation, out_size, groups, transposed)
    channels_last = gives_channels_last(x, weight)
    if scale is None and not channels_last and line_of(x, weight, *geometry) is not None:
        return
    shape = (len(x), output_channels(weight, groups, transposed), *out_size)
    vectors = (None if t is None else t.to(compute_dtype(x.dtype)).contiguous() for t in (scale, bias))
    winograd = winograd_scheme(x, weight, *geometry)
    with Packed(weight, groups, not transposed, winograd) as packed:
        tensors_of_call = (packed, *vectors, None, None)
    sizes = (groups, list(weight.shape[2:]), stride, padding, dilation, transposed)
    arguments = (*tensors_of_call, *sizes, CONV_ACTIVATIONS[activation], negative_slope, winograd)
    forward, below_autograd = torch.ops.gencore_c.conv_forward.default, torch._C._AutoDispatchBelowAutograd

    def run(x: Tensor) -> Tensor | None:
        with below_autograd():
            y = empty(shape, x, channels_last)
            return y if forward(x, *arguments, y) else None  # an input is not finite: direct sums decide

    if len(calls) >= _MOST_CALLS:
        calls.clear()
    calls[_kind(x)] = _Call(settings, [weakref.ref(t) for t in given], _state(given), run)


def _is_out_of_the_ordinary(x: Tensor) -> bool:
    plain = type(x) is Tensor and x.is_cpu and x.numel() > 0
    return not plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or is_watched()


def _kind(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, current_backend(), may_be_less_exact()


def _state(tensors: list[Tensor]) -> tuple[Any, ...]:
    fingerprint = torch.ops.gencore_c.fingerprints.default(tensors, PIECES)
    return fingerprint, tensors[0].stride(), *(t._version for t in tensors)
