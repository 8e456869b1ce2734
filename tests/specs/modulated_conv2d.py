"""``modulated_conv2d``: samples, a convolution for every sample in PyTorch's own functions, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as TF
from torch.nn.init import calculate_gain

from gencore import functional as F
from tests.opspec import ErrorInput, OpSpec, Sample
from tests.specs.bias_act import composite as bias_act
from tests.specs.conv2d_resample import resampled


def make(
    name: str,
    n: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    taps: int | None = None,
    noise: bool = False,
    bias: bool = False,
    input_gain: bool = False,
    seed: int = 9,
    **options: Any,
) -> Sample:
    """``taps``: width of the row whose outer product is the filter."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    into, out = channels
    options = {"padding": kernel[0] // 2, **options}
    row = draw(taps).abs() + 0.5 if taps else None
    f = None if row is None else torch.outer(row, row) / row.sum().square()
    tensors = {
        "x": draw(n, into, *size),
        "weight": draw(out, into, *kernel),
        "style": draw(n, into) * 0.4 + 1.0,
        "resample_filter": f,
        "input_gain": draw(n, into).square() + 0.5 if input_gain else None,
        "bias": draw(out) if bias else None,
        "noise": None,
        "noise_strength": None,
    }
    if noise:
        one = {"x": tensors["x"][:1], "style": tensors["style"][:1], "input_gain": None}
        blank = composite({**tensors, **one}, options, None)[0]
        tensors["noise"] = draw(n, 1, *blank.shape[2:])
        tensors["noise_strength"] = draw() * 0.5
    return Sample(name, tensors, options)


def samples() -> list[Sample]:
    layer = {"noise": True, "bias": True, "activation": "lrelu"}
    return [
        make("layer", 2, (5, 6), (5, 6), **layer),
        make("up", 2, (5, 4), (4, 5), taps=4, up=2, flip_weight=False, **layer),
        make("clamped", 2, (5, 6), (4, 4), clamp=0.4, gain=0.7, **layer),
        make("picture", 2, (6, 3), (4, 5), (1, 1), demodulate=False, bias=True),
        make("small", 2, (2, 2), (3, 3), bias=True, noise=True, activation="swish"),
        make("small_up", 1, (2, 2), (2, 3), taps=4, up=2, flip_weight=False, bias=True, noise=True, activation="lrelu"),
        make("small_picture", 2, (3, 2), (2, 3), (1, 1), demodulate=False, input_gain=True),
        make("down", 2, (4, 5), (8, 6), taps=4, down=2, bias=True, activation="tanh"),
        make("up_flipped", 2, (3, 4), (4, 3), taps=3, up=2, flip_weight=True),
        make("up_and_down", 1, (3, 4), (5, 4), taps=4, up=3, down=2, flip_weight=False),
        make("up_without_filter", 2, (3, 4), (4, 3), up=2, noise=True),
        make("up_picture", 2, (3, 4), (4, 3), (1, 1), taps=4, up=2, demodulate=False),
        make("asymmetric", 2, (3, 4), (6, 5), (3, 2), padding=[0, 2, 1, 0], flip_weight=False),
        make("cropped", 2, (3, 4), (6, 7), padding=[-1, 1, 2, -2]),
        make("plain", 3, (4, 4), (4, 4), demodulate=False, input_gain=True),
        make("one_pixel", 4, (5, 3), (1, 1), (1, 1), bias=True),
        make("many_channels", 2, (35, 67), (4, 4), **layer),
        make("empty", 0, (3, 4), (4, 4), bias=True),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    side = draw(st.sampled_from([1, 2, 3]))
    up = draw(st.sampled_from([1, 1, 2, 3]))
    channels = (draw(st.integers(1, 18)), draw(st.integers(1, 18)))
    return make(
        "drawn",
        draw(st.integers(1, 3)),
        channels,
        (draw(st.integers(2, 8)), draw(st.integers(2, 8))),
        (side, side),
        taps=draw(st.sampled_from([None, 2, 3, 4])),
        noise=draw(st.booleans()),
        bias=draw(st.booleans()),
        input_gain=draw(st.booleans()),
        seed=draw(st.integers(0, 999)),
        padding=draw(st.integers(side // 2 + 1, 3)),
        # The demodulated weight of one channel and one tap is its sign, and the gradient nothing but rounding.
        demodulate=channels[0] * side > 1 and draw(st.booleans()),
        up=up,
        down=1 if up > 1 else draw(st.sampled_from([1, 2])),
        flip_weight=draw(st.booleans()),
        activation=draw(st.sampled_from(["linear", "lrelu", "swish"])),
    )


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
    """One convolution a sample, each with its own weight; transposed and then filtered where the image grows."""
    x, weight, style = tensors["x"], tensors["weight"], tensors["style"]
    f, bias, gains = tensors["resample_filter"], tensors["bias"], tensors["input_gain"]
    assert x is not None
    assert weight is not None
    assert style is not None
    w = weight * style[:, None, :, None, None]
    if options.get("demodulate", True):
        w = w / (w.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).sqrt()
    if gains is not None:
        w = w * gains[:, None, :, None, None]
    if len(x) == 0:
        y = resampled(x, weight, f, options)
    else:
        y = torch.cat([resampled(one[None], w_one, f, options) for one, w_one in zip(x, w, strict=True)])
    noise, strength = tensors["noise"], tensors["noise_strength"]
    if noise is not None:
        y = y + noise * strength
    known = {k: v for k, v in options.items() if k in ("gain", "clamp", "alpha")}
    return bias_act({"x": y, "b": bias}, {"act": options.get("activation", "linear"), **known}, None)


def errors() -> list[ErrorInput]:
    x, weight, style = torch.randn(2, 3, 4, 5), torch.randn(6, 3, 3, 3), torch.ones(2, 3)
    noise, meta = torch.randn(2, 1, 2, 3), style.to("meta")

    def case(name: str, message: str, torch_call: Any = None, /, **arguments: Any) -> ErrorInput:
        keywords: dict[str, Any] = {"x": x, "weight": weight, "style": style} | arguments

        def same() -> Tensor:
            y = TF.conv2d(keywords["x"] * keywords["style"][:, :, None, None], keywords["weight"])
            return y + keywords["noise"] if "noise" in keywords else y

        return ErrorInput(name, lambda impl: F.modulated_conv2d(**keywords, impl=impl), torch_call or same, message)

    known = "activation must be one of linear, relu, lrelu, .*; got 'leaky_relu'"

    def clash() -> Tensor:
        return style * torch.ones(2, 4)

    wrong = [torch.ones(2, 4), torch.ones(3), torch.ones(3, 3)]
    return [
        *(case(f"style_{i}", r"style must have shape \(2, 3\), got", clash, style=s) for i, s in enumerate(wrong)),
        case("style_dtype", "style must have x's dtype", lambda: TF.linear(style.double(), x), style=style.double()),
        case("style_is_no_tensor", "style must be a Tensor, got float", lambda: TF.linear(x, 1.0), style=1.0),
        case("channels", "x must have 4 channels for a weight of shape", weight=torch.randn(6, 4, 3, 3)),
        case("weight_rank", r"weight must have shape \[O, 3, k, l\]", lambda: x @ weight[0], weight=weight[0]),
        case("weight_dtype", "weight must have x's dtype", weight=weight.double()),
        case("kernel_too_large", r"width 5 with up 1 and padding \(0, 0\)", weight=torch.randn(6, 3, 7, 7)),
        case("cropped", r"height 4 .* is 2", lambda: TF.conv2d(x[:, :, :2], weight), padding=[0, 0, -1, -1]),
        case("two_dimensions", r"x must have shape \[N, C, H, W\]", lambda: TF.conv2d(x[0, 0], weight), x=x[0, 0]),
        case("filter", "resample_filter must have shape .*, got", lambda: TF.conv2d(x, x[0]), resample_filter=x[0]),
        case("up", "up must be a whole number of at least 1, got 0",
             lambda: TF.conv_transpose2d(x, weight, stride=0), up=0),
        case("noise", r"noise must have shape \[2, 1, 2, 3\], .*got \(2, 1, 2, 4\)", noise=torch.randn(2, 1, 2, 4)),
        case("strength", "noise_strength must have one element", lambda: torch.ones(3) @ torch.ones(2), noise=noise,
             noise_strength=torch.ones(2)),
        case("no_noise", "noise_strength is given, but no noise", lambda: TF.interpolate(x), noise_strength=0.5),
        case("input_gain", r"input_gain must be a number or have shape \[3\] or \[2, 3\], got \(4,\)",
             lambda: style * torch.ones(4), input_gain=torch.ones(4)),
        case("bias", r"bias must have shape \(6,\), got \(3,\)", lambda: TF.conv2d(x, weight, style[0]), bias=style[0]),
        case("activation", known, lambda: calculate_gain("gulu"), activation="leaky_relu"),
        case("device", "style is on meta", lambda: TF.batch_norm(x, style[0], meta[0]), style=meta),
    ]  # fmt: skip


SPEC = OpSpec(
    function=F.modulated_conv2d,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("x", "weight", "style", "input_gain", "noise", "noise_strength", "bias"),
    layout=("x", "style", "noise", "input_gain"),
    outputs_like=(),
    errors=errors,
    autocast=True,
)
