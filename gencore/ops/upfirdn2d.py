"""Up-sampling, FIR filter and down-sampling of images in one pass, and what is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import OPS, Implementation, Op, Reason, cpu_refusal, triton_refusal, triton_slower
from gencore.ops._checks import check_device, check_floating, check_number, compute_dtype
from gencore.ops._layout import empty, is_channels_last, workable
from gencore.ops._library import define
from gencore.reference.upfirdn2d import filter_size

Pair = int | Sequence[int]


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Pair = 1,
    down: Pair = 1,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    *,
    impl: str = "auto",
) -> Tensor:
    r"""Up-sample, pad, filter and down-sample every channel of a batch of images.

    In this order: ``up - 1`` zeros follow every pixel; ``padding`` zeros go around (negative numbers crop); the result
    is convolved with ``f`` and multiplied by ``gain``; every ``down``-th pixel is kept. With u = up, d = down,

    .. math::
        y_{nc}[p] = \mathrm{gain} \sum_{t} f[t]\; z_{nc}[p\,d + |f| - 1 - t], \qquad
        z[q] = x[(q - \mathrm{pad}) / u] \text{ where that is a pixel, else } 0

    in each direction. No zeros are stored. The gradient of x is the same op with up and down exchanged and the filter
    turned round, so derivatives exist to any order.

    Args:
        x: ``[N, C, H, W]``; float32, float64, bfloat16 or float16; contiguous and channels_last are worked on as they
            are, other strides through a copy.
        f: ``[h, w]``; or ``[taps]``, applied along both directions; or None, a single 1. Any floating dtype; taps are
            taken as float32 (float64 for float64 x). A filter that requires a gradient is served by the reference.
        up, down: at least 1; one number or (x, y).
        padding: in pixels of the up-sampled image: one number, (x, y), or (left, right, top, bottom).
        flip_filter: False convolves, True correlates.
        gain: factor of the result.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        ``[N, C, H', W']`` with ``H' = (H up + y0 + y1 - h) // down + 1``, in dtype and layout of x.

    Raises:
        TypeError: x or f is not a tensor, or gain is one; up, down or padding is no whole number and no sequence.
        RuntimeError: a shape, size, dtype or device that does not fit, or nothing left after cropping.

    Reference:
        Karras, Laine, Aittala, Hellsten, Lehtinen and Aila, "Analyzing and improving the image quality of StyleGAN",
        2020, appendix B; Vaidyanathan, "Multirate systems and filter banks", 1993, on the phases.
    """
    where = "upfirdn2d"
    ups, downs = check_factors(where, "up", up), check_factors(where, "down", down)
    paddings = expand_padding(where, padding)
    check_image_and_filter(where, x, f)
    check_number(where, "gain", gain)
    output_size(where, x, f, ups, downs, paddings)
    return resample(x, f, ups, downs, paddings, flip_filter, gain, OP.select(impl, x, f))


def resample(
    x: Tensor,
    f: Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
    impl: str,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """The checked call, by the implementation ``impl``; with an ``epilogue``, no gradient is recorded."""
    if impl == "reference":
        return reference.upfirdn2d(x, f, up, down, padding, flip_filter, gain)
    arguments = (x, _kernel_filter(f, x), up, down, padding, flip_filter, float(gain))
    if epilogue is None:
        return _UPFIRDN2D(*arguments, impl)
    return _UPFIRDN2D_BIAS_ACT(*arguments, *epilogue.arguments(x), impl)


class Epilogue(NamedTuple):
    """What a kernel of the CPU does on its way out: ``clamp(gain * act(result * scale + noise + b))``.

    Tensors as in :func:`gencore.ops.bias_act.scaled_bias_act`; ``act`` is one of ``SLOPES``.
    """

    scale: Tensor | None
    noise: Tensor | None
    b: Tensor | None
    act: str
    alpha: float
    gain: float
    clamp: float

    def arguments(self, x: Tensor) -> tuple[Any, ...]:
        """As the ops of such kernels take them for an image x: scale, noise, b, slope below 0, gain, clamp."""
        compute = compute_dtype(x.dtype)
        tensors = (None if t is None else t.to(compute).contiguous() for t in (self.scale, self.noise, self.b))
        slope = self.alpha if self.act == "leaky_relu" else SLOPES[self.act]
        return (*tensors, slope, self.gain, self.clamp)


# Slopes below 0 of the activations that are two half-lines; a leaky ReLU's is its alpha.
SLOPES = {"identity": 1.0, "leaky_relu": 0.2}


def _kernel_filter(f: Tensor | None, x: Tensor) -> Tensor:
    """The filter as the kernels take it: float32 or float64, contiguous."""
    if f is None:
        return torch.ones((1, 1), dtype=torch.float32, device=x.device)
    return f.detach().to(compute_dtype(f.dtype)).contiguous()


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: Pair = 2,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    *,
    impl: str = "auto",
) -> Tensor:
    """Up-sampling by ``f``: :func:`upfirdn2d` with the padding that keeps the image centred and ``up`` times its size.

    Args:
        padding: more of it, in pixels of the result; negative crops.
        gain: the image's mean is multiplied by it (the op's own gain is ``gain * up_x * up_y``).

    Returns:
        ``[N, C, H up, W up]`` with no further padding. Other arguments and errors are those of :func:`upfirdn2d`.
    """
    ups, extra = check_factors("upsample2d", "up", up), expand_padding("upsample2d", padding)
    check_image_and_filter("upsample2d", x, f)
    centred = [(size + u - 1, size - u) for size, u in zip(filter_size(f), ups, strict=True)]
    paddings = [e + c // 2 for e, c in zip(extra, (*centred[0], *centred[1]), strict=True)]
    return upfirdn2d(x, f, ups, 1, paddings, flip_filter, gain * ups[0] * ups[1], impl=impl)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: Pair = 2,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    *,
    impl: str = "auto",
) -> Tensor:
    """Down-sampling by ``f``: :func:`upfirdn2d` with the padding that keeps the image centred.

    Args:
        padding: more of it, in pixels of the input; negative crops.

    Returns:
        ``[N, C, H // down, W // down]`` with no further padding. Other arguments and errors are those of
        :func:`upfirdn2d`.
    """
    downs, extra = check_factors("downsample2d", "down", down), expand_padding("downsample2d", padding)
    check_image_and_filter("downsample2d", x, f)
    centred = [(size - d + 1, size - d) for size, d in zip(filter_size(f), downs, strict=True)]
    paddings = [e + c // 2 for e, c in zip(extra, (*centred[0], *centred[1]), strict=True)]
    return upfirdn2d(x, f, 1, downs, paddings, flip_filter, gain, impl=impl)


def filter2d(
    x: Tensor,
    f: Tensor | None,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    *,
    impl: str = "auto",
) -> Tensor:
    """Filtering by ``f`` at the same size: :func:`upfirdn2d` with the padding that keeps the image centred.

    Args:
        padding: more of it, in pixels; negative crops.

    Returns:
        ``[N, C, H, W]`` with no further padding. Other arguments and errors are those of :func:`upfirdn2d`.
    """
    extra = expand_padding("filter2d", padding)
    check_image_and_filter("filter2d", x, f)
    width, height = filter_size(f)
    centred = (width // 2, (width - 1) // 2, height // 2, (height - 1) // 2)
    paddings = [e + c for e, c in zip(extra, centred, strict=True)]
    return upfirdn2d(x, f, 1, 1, paddings, flip_filter, gain, impl=impl)


# --- implementations -------------------------------------------------------------------------------------------------


def _kernel(call: Any) -> Any:
    def upfirdn2d(
        x: Tensor,
        f: Tensor,
        up: list[int],
        down: list[int],
        padding: list[int],
        flip_filter: bool,
        gain: float,
        *epilogue: Any,
    ) -> Tensor:
        dense = workable(x)
        channels_last = is_channels_last(dense)
        size = output_size("upfirdn2d", x, f, up, down, padding)
        y = empty((*x.shape[:2], *size), x, channels_last)
        pads = (padding[0], padding[2])
        call(dense, f, *up, *down, *pads, flip_filter, gain, *epilogue, channels_last, y)
        return y

    return upfirdn2d


def _cpu(*args: Any) -> None:
    *given, channels_last, y = args
    epilogue = (True, *given[10:]) if len(given) > 10 else (False, None, None, None, 1.0, 1.0, -1.0)
    torch.ops.gencore_c.upfirdn2d.default(*given[:10], *epilogue, channels_last, y)


def _triton(x: Tensor, f: Tensor, *args: Any) -> None:
    from gencore.kernels.upfirdn2d import upfirdn2d

    upfirdn2d(x, f.float(), *args)


def filter_refusal(f: Tensor | None) -> Reason:
    """Why the kernels cannot take the filter."""
    wanted = f is not None and f.requires_grad and torch.is_grad_enabled()
    return "only the reference has a gradient of the filter" if wanted else None


OP = Op(
    "upfirdn2d",
    {
        "triton": Implementation(
            lambda x, f=None, *args, **kwargs: triton_refusal(x) or filter_refusal(f),
            lambda x, *args, **kwargs: triton_slower(x),
        ),
        "cpu": Implementation(lambda x, f=None, *args, **kwargs: cpu_refusal(x) or filter_refusal(f)),
    },
)
OPS.update(dict.fromkeys(("upsample2d", "downsample2d", "filter2d"), OP))  # for explain(): they are calls of it

# --- registration ----------------------------------------------------------------------------------------------------


def _fake(
    x: Tensor,
    f: Tensor,
    up: list[int],
    down: list[int],
    padding: list[int],
    flip_filter: bool,
    *rest: Any,
) -> Tensor:
    return empty((*x.shape[:2], *output_size("upfirdn2d", x, f, up, down, padding)), x, is_channels_last(x))


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    x, f, ctx.up, ctx.down, ctx.padding, ctx.flip_filter, ctx.gain, ctx.impl = inputs
    ctx.size, ctx.out_size = x.shape[2:], output.shape[2:]
    ctx.save_for_backward(f)


def _differentiate(ctx: Any, grad: Tensor) -> Any:
    """The same op, with up and down exchanged, the filter turned round, and padding that gives x its size back."""
    (f,) = ctx.saved_tensors
    padding = []
    for axis, taps in enumerate(filter_size(f)):
        up, before = ctx.up[axis], ctx.padding[2 * axis]
        after = ctx.size[1 - axis] * up - ctx.out_size[1 - axis] * ctx.down[axis] + before - up + 1
        padding += [taps - before - 1, after]
    grad_x = _UPFIRDN2D(grad, f, ctx.down, ctx.up, padding, not ctx.flip_filter, ctx.gain, ctx.impl)
    return grad_x, *[None] * 7


_UPFIRDN2D = define(
    "upfirdn2d(Tensor x, Tensor f, int[] up, int[] down, SymInt[] padding, bool flip_filter, float gain, str impl) "
    "-> Tensor",
    {"cpu": _kernel(_cpu), "triton": _kernel(_triton)},
    _fake,
    setup_context=_save,
    backward=_differentiate,
)

# --- checks ----------------------------------------------------------------------------------------------------------


def check_image_and_filter(where: str, x: Tensor, f: Tensor | None) -> None:
    check_floating(where, "x", x)
    if x.dim() != 4 or x.shape[2] < 1 or x.shape[3] < 1:
        raise RuntimeError(f"{where}: x must have shape [N, C, H, W] with at least one pixel, got {tuple(x.shape)}")
    check_filter(where, "f", f, x)


def check_filter(where: str, name: str, f: Tensor | None, x: Tensor) -> None:
    if f is None:
        return
    check_floating(where, name, f)
    check_device(where, name, f, "x", x)
    if f.dim() not in (1, 2) or f.numel() == 0:
        raise RuntimeError(f"{where}: {name} must have shape [taps] or [h, w] and not be empty, got {tuple(f.shape)}")


def check_factors(where: str, name: str, value: Pair) -> tuple[int, int]:
    """``value`` for x and y."""
    x, y = _numbers(where, name, value, (1, 2))[:2]
    if x < 1 or y < 1:
        raise RuntimeError(f"{where}: {name} must be at least 1, got {value}")
    return x, y


def expand_padding(where: str, value: Pair) -> tuple[int, int, int, int]:
    """``value`` as (x0, x1, y0, y1)."""
    numbers = _numbers(where, "padding", value, (1, 2, 4))
    return (numbers[0], numbers[0], numbers[1], numbers[1]) if len(numbers) == 2 else (*numbers,)  # type: ignore[return-value]


def _numbers(where: str, name: str, value: Pair, counts: tuple[int, ...]) -> list[int]:
    numbers = list(value) if isinstance(value, Sequence) else [value]
    numbers = numbers * 2 if len(numbers) == 1 else numbers
    if len(numbers) not in counts or not all(isinstance(v, int | torch.SymInt) for v in numbers):
        error = RuntimeError if isinstance(value, Sequence) else TypeError
        raise error(f"{where}: {name} must be {' or '.join(map(str, counts))} whole numbers, got {value!r}")
    return numbers


def output_size(
    where: str,
    x: Tensor,
    f: Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
) -> tuple[int, int]:
    """Height and width of the result; refuses sizes that padding does not bring up to the filter's."""
    sizes = []
    for axis, taps in enumerate(filter_size(f)):
        before, after = padding[2 * axis : 2 * axis + 2]
        padded = x.shape[3 - axis] * up[axis] + before + after
        if padded < taps:
            raise RuntimeError(
                f"{where}: the up-sampled and padded image must not be smaller than the filter: "
                f"{'width' if axis == 0 else 'height'} {x.shape[3 - axis]} with up {up[axis]} and padding "
                f"({before}, {after}) is {padded}, the filter has {taps} taps"
            )
        sizes.append((padded - taps) // down[axis] + 1)
    return sizes[1], sizes[0]


# Without a gradient: where one is recorded, the filter and the epilogue are two ops.
_UPFIRDN2D_BIAS_ACT = define(
    "upfirdn2d_bias_act(Tensor x, Tensor f, int[] up, int[] down, SymInt[] padding, bool flip_filter, float gain, "
    "Tensor? scale, Tensor? noise, Tensor? b, float slope, float act_gain, float clamp, str impl) -> Tensor",
    {"cpu": _kernel(_cpu)},
    _fake,
)
