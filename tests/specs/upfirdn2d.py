"""``upfirdn2d``: samples, zero-insertion and convolution in PyTorch's own functions, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as TF

from gencore import functional as F
from tests.opspec import ErrorInput, OpSpec, Sample


def make(name: str, *shape: int, taps: tuple[int, ...] | None = (4, 4), seed: int = 3, **options: Any) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, dtype=torch.float64, generator=generator) + 0.3
    f = None if taps is None else torch.randn(taps, dtype=torch.float64, generator=generator)
    return Sample(name, {"x": x, "f": f}, options)


def smooth(name: str, *shape: int, **options: Any) -> Sample:
    """With StyleGAN2's filter, an outer product that is exact in every dtype."""
    sample = make(name, *shape, **options)
    f = torch.outer(row := torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64), row) / 64
    return Sample(name, {**sample.tensors, "f": f}, options)


def samples() -> list[Sample]:
    return [
        smooth("up", 2, 3, 5, 6, up=2, padding=[2, 1, 2, 1], gain=4.0),
        smooth("down", 2, 3, 8, 7, down=2, padding=1),
        smooth("filter", 2, 3, 6, 5, padding=[2, 1, 2, 1]),
        # Of the phases of the result, only the first has a pixel; it has fewer taps than the others.
        make("fewer_pixels_than_phases", 2, 3, 3, 29, taps=(7,), up=[4, 2], down=[3, 4], padding=[-105, -3, 6, 0]),
        make("two_dimensional", 2, 3, 6, 5, up=2, padding=[2, 1, 1, 2]),
        make("row", 2, 3, 5, 6, taps=(6,), up=2, down=3, padding=4, gain=-1.5),
        make("flipped", 1, 2, 5, 6, taps=(3, 2), padding=[0, 2, 1, 0], flip_filter=True),
        make("cropped", 2, 2, 9, 8, taps=(3, 3), up=[1, 2], down=[2, 1], padding=[-2, 3, -1, -3]),
        make("small_up", 1, 2, 3, 4, taps=(4,), up=2, padding=[2, 1]),
        make("small_down", 1, 2, 5, 4, taps=(2, 3), down=[2, 3], padding=2, flip_filter=True),
        make("no_filter", 2, 3, 4, 5, taps=None, up=2, down=3),
        make("one_pixel", 3, 4, 1, 1, taps=(2, 2), up=2, padding=1),
        make("many_channels", 2, 37, 4, 5, taps=(4, 4), up=2, padding=[2, 1, 2, 1]),
        make("wide", 1, 2, 3, 77, taps=(4,), up=2, padding=[2, 1, 2, 1]),
        make("wide_down", 1, 2, 6, 91, taps=(12,), down=2, padding=5),
        # Four taps: line by line in planes, in blocks of rows where planes are few; by pixels in channels_last.
        make("lines", 1, 2, 70, 37, taps=(4,), padding=[2, 1, 2, 1]),
        make("lines_down", 1, 2, 75, 70, taps=(4,), down=2, padding=[3, -1, 1, 2]),
        make("lines_mixed", 1, 2, 9, 40, taps=(4,), down=[1, 2], padding=[-3, 9, -1, 2]),
        make("lines_up", 1, 2, 37, 35, taps=(4,), up=2, padding=[1, 2, 3, 0]),
        make("lines_up_cropped", 1, 2, 6, 40, taps=(4,), up=2, padding=[-3, 4, 2, -1]),
        make("pixels", 1, 37, 6, 7, taps=(4,), padding=[2, 1, 2, 1]),
        make("pixels_down", 2, 37, 9, 6, taps=(4,), down=2, padding=[1, 2, 3, 0]),
        make("pixels_mixed", 1, 16, 8, 9, taps=(4,), down=[2, 1], padding=[-2, 3, 4, -1]),
        make("large_factors", 1, 2, 7, 9, taps=(9, 7), up=[4, 3], down=[3, 5], padding=6),
        make("empty", 0, 3, 4, 4, up=2, padding=2),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    size = (draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 12)), draw(st.integers(1, 40)))
    taps = draw(st.one_of(st.none(), st.tuples(st.integers(1, 9)), st.tuples(st.integers(1, 6), st.integers(1, 6))))
    up = [draw(st.integers(1, 4)), draw(st.integers(1, 4))]
    down = [draw(st.integers(1, 4)), draw(st.integers(1, 4))]
    width, height = (1, 1) if taps is None else (taps[-1], taps[0])
    padding = []
    for length, factor, least in ((size[3], up[0], width), (size[2], up[1], height)):
        before = draw(st.integers(-length * factor + 1, 9))
        lowest = max(-length * factor + 1, least - length * factor - before)
        padding += [before, draw(st.integers(lowest, lowest + 12))]
    options = {"up": up, "down": down, "padding": padding, "flip_filter": draw(st.booleans()), "gain": 1.25}
    return make("drawn", *size, taps=taps, seed=draw(st.integers(0, 999)), **options)


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
    """Zeros by assignment, padding and cropping by ``pad``, one convolution over all planes with a stride."""
    x, f = tensors["x"], tensors["f"]
    assert x is not None
    pair = {k: [v, v] if isinstance(v := options.get(k, 1), int) else v for k in ("up", "down")}
    padding = options.get("padding", 0)
    padding = [padding] * 4 if isinstance(padding, int) else padding
    padding = [padding[0], padding[0], padding[1], padding[1]] if len(padding) == 2 else padding
    n, c, h, w = x.shape
    spread = x.new_zeros(n * c, 1, h * pair["up"][1], w * pair["up"][0])
    spread[:, 0, :: pair["up"][1], :: pair["up"][0]] = x.reshape(n * c, h, w)
    f = x.new_ones(1, 1) if f is None else f
    f = f.outer(f) if f.dim() == 1 else f
    f = f if options.get("flip_filter") else f.flip([0, 1])
    y = TF.conv2d(TF.pad(spread, padding), f[None, None] * options.get("gain", 1.0), stride=pair["down"][::-1])
    return (y.reshape(n, c, *y.shape[2:]),)


def errors() -> list[ErrorInput]:
    x, f = torch.randn(2, 3, 4, 5), torch.ones(2, 2)
    c, meta = torch.ones(3), torch.ones(3, device="meta")
    grouped = torch.ones(3, 1, 2, 2)

    def case(name: str, message: str, torch_call: Any, /, **arguments: Any) -> ErrorInput:
        keywords = {"x": x, "f": f} | arguments
        return ErrorInput(name, lambda impl: F.upfirdn2d(**keywords, impl=impl), torch_call, message)

    return [
        case("rank_3", r"f must have shape .*, got \(1, 2, 2\)", lambda: TF.conv2d(x, f[None]), f=f[None]),
        case("empty_filter", r"f must .* not be empty, got \(0,\)", lambda: TF.conv2d(x, x[:0, :, :0]), f=f[0, :0]),
        case("filter_is_a_list", "f must be a Tensor, got list", lambda: TF.conv2d(x, [1.0]), f=[1.0]),
        case("integer_filter", "f must have a floating", lambda: TF.conv2d(x, grouped.long(), groups=3), f=f.long()),
        case("integer", "x must have a floating-point dtype", lambda: TF.conv2d(x.long(), grouped), x=x.long()),
        case("three_dimensions", r"x must have shape \[N, C, H, W\]", lambda: TF.conv2d(x[0, 0], f), x=x[0]),
        case("no_pixels", "at least one pixel", lambda: TF.conv2d(x[:, :, :0], grouped, groups=3), x=x[:, :, :0]),
        case("too_small", r"height 4 .* is 2, the filter has 3", lambda: TF.conv2d(x, torch.ones(1, 3, 5, 5)),
             f=torch.ones(3, 1), padding=[0, 0, -1, -1]),
        case("cropped_away", r"width 5 .* \(-3, -3\) is -1", lambda: TF.pad(x, [-3, -3]), padding=[-3, -3, 0, 0]),
        case("up", "up must be at least 1, got 0", lambda: TF.conv_transpose2d(x, grouped, stride=0, groups=3), up=0),
        case("down", r"down must be at least 1", lambda: TF.conv2d(x, grouped, stride=-1, groups=3), down=[2, -1]),
        case("padding", r"padding must be 1 or 2 or 4 whole numbers, got \[1, 2, 3\]",
             lambda: TF.conv2d(x, grouped, padding=[1, 2, 3], groups=3), padding=[1, 2, 3]),
        case("padding_of_halves", r"padding must be 1 or 2 or 4 whole numbers, got 1.5",
             lambda: TF.conv2d(x, grouped, padding=1.5, groups=3), padding=1.5),
        case("up_of_none", r"up must be 1 or 2 whole numbers, got None",
             lambda: TF.conv_transpose2d(x, grouped, stride="2", groups=3), up=None),
        case("gain_tensor", "gain must be a number, got a Tensor", lambda: x.flatten(f), gain=torch.ones([])),
        case("device", "f is on meta", lambda: TF.batch_norm(x, c, meta), f=f.to("meta")),
    ]  # fmt: skip


def large(device: str, impl: str) -> None:
    """2^31 + 2^20 elements in, zero but for the last image: what comes out past 2^31 must be right."""
    images = (1 << 11) + 1
    x = torch.zeros((images, 16, 256, 256), dtype=torch.bfloat16, device=device)
    x[-1] = 1.0
    f = F.setup_filter([1, 3, 3, 1], device=device)
    y = F.upfirdn2d(x, f, down=2, padding=1, impl=impl)
    assert y.shape == (images, 16, 128, 128)
    assert torch.equal(y[-1, :, 1:-1, 1:-1], torch.ones_like(y[-1, :, 1:-1, 1:-1]))
    assert torch.equal(y[images // 2], torch.zeros_like(y[0]))
    grad = F.upfirdn2d(y, f, up=2, padding=[2, 1, 2, 1], gain=4.0, impl=impl)
    assert torch.equal(grad[-1, :, 4:-4, 4:-4], torch.ones_like(grad[-1, :, 4:-4, 4:-4]))


SPEC = OpSpec(
    function=F.upfirdn2d,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("x",),
    layout=("x",),
    outputs_like=(),
    errors=errors,
    large=large,
    large_bytes=10 << 30,
    raw_ops=1,
)
