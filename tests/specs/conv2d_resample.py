"""``conv2d_resample``: samples, padding, filter and convolution in PyTorch's own functions, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as TF

from gencore import functional as F
from tests.opspec import ErrorInput, OpSpec, Sample


def make(
    name: str,
    n: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    taps: int | None = None,
    groups: int = 1,
    seed: int = 4,
    **options: Any,
) -> Sample:
    """``taps``: width of the row whose outer product is the filter."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    row = draw(taps).abs() + 0.5 if taps else None
    f = None if row is None else torch.outer(row, row) / row.sum().square()
    tensors = {"x": draw(n, channels[0], *size), "weight": draw(channels[1], channels[0] // groups, *kernel), "f": f}
    return Sample(name, tensors, {"padding": kernel[0] // 2, "groups": groups, **options})


def samples() -> list[Sample]:
    return [
        make("up", 2, (4, 5), (4, 5), taps=4, up=2, flip_weight=False),
        make("down", 2, (4, 5), (8, 6), taps=4, down=2),
        make("plain", 2, (4, 6), (5, 6)),
        make("up_flipped", 2, (3, 4), (4, 3), taps=3, up=2, flip_filter=True),
        make("up_and_down", 1, (3, 4), (5, 4), taps=4, up=3, down=2, flip_weight=False),
        make("up_without_filter", 2, (3, 4), (4, 3), up=2),
        make("up_one_pixel", 2, (3, 4), (4, 3), (1, 1), taps=4, up=2),
        make("up_and_down_one_pixel", 2, (3, 4), (4, 6), (1, 1), taps=4, up=2, down=3),
        make("down_one_pixel", 2, (3, 4), (6, 8), (1, 1), taps=4, down=2, flip_filter=True),
        make("grouped_up", 2, (4, 6), (3, 4), taps=4, up=2, groups=2),
        make("grouped_down", 2, (4, 6), (6, 8), taps=4, down=2, groups=2, flip_weight=False),
        make("even_kernel", 2, (3, 4), (5, 4), (2, 2), taps=4, up=2),
        make("asymmetric", 2, (3, 4), (6, 5), (3, 2), padding=[0, 2, 1, 0], flip_weight=False),
        make("cropped", 2, (3, 4), (6, 7), padding=[-1, 1, 2, -2]),
        make("cropped_up", 2, (3, 4), (6, 7), taps=4, up=2, padding=[-5, 1, 2, -4]),
        make("small_up", 1, (2, 2), (2, 3), taps=4, up=2, flip_weight=False),
        make("small_down", 1, (2, 2), (4, 4), taps=4, down=2),
        make("many_channels", 2, (35, 67), (4, 4), taps=4, up=2),
        make("empty", 0, (3, 4), (4, 4), taps=4, up=2),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    side, groups, up = (
        draw(st.sampled_from([1, 2, 3])),
        draw(st.sampled_from([1, 1, 2])),
        draw(st.sampled_from([1, 2, 3])),
    )
    return make(
        "drawn",
        draw(st.integers(1, 3)),
        (groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 9))),
        (draw(st.integers(2, 8)), draw(st.integers(2, 8))),
        (side, side),
        taps=draw(st.sampled_from([None, 2, 3, 4])),
        groups=groups,
        seed=draw(st.integers(0, 999)),
        padding=draw(st.integers(side // 2 + 1, 3)),
        up=up,
        down=draw(st.sampled_from([1, 1, 2])),
        flip_weight=draw(st.booleans()),
        flip_filter=draw(st.booleans()),
    )


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
    x, weight = tensors["x"], tensors["weight"]
    assert x is not None
    assert weight is not None
    return (resampled(x, weight, tensors["f"], options),)


def resampled(x: Tensor, weight: Tensor, f: Tensor | None, options: Mapping[str, Any]) -> Tensor:
    """Transposed and then filtered where the image grows; filtered and then strided where it only shrinks."""
    up, down, padding = options.get("up", 1), options.get("down", 1), options["padding"]
    groups, turn = options.get("groups", 1), not options.get("flip_filter", False)
    x0, x1, y0, y1 = [padding] * 4 if isinstance(padding, int) else padding
    taps = 1 if f is None else len(f)
    before = (taps + up - 1) // 2 * (up > 1) + (taps - down + 1) // 2 * (down > 1)
    after = (taps - up) // 2 * (up > 1) + (taps - down) // 2 * (down > 1)
    x0, x1, y0, y1 = x0 + before, x1 + after, y0 + before, y1 + after
    kh, kw = weight.shape[2:]
    correlated = options.get("flip_weight", True)
    if up > 1:
        turned = weight.flip([2, 3]) if correlated else weight
        turned = turned.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        y = TF.conv_transpose2d(x, turned, stride=up, groups=groups)
        y = TF.pad(y, [x0 - kw + 1, x1 - kw + up, y0 - kh + 1, y1 - kh + up])
        y = filtered(y, f, up * up, turn)
        return filtered(y, f, 1, turn)[:, :, ::down, ::down] if down > 1 else y
    x = TF.pad(x, [x0, x1, y0, y1])
    x = filtered(x, f, 1, turn) if down > 1 else x
    return TF.conv2d(x, weight if correlated else weight.flip([2, 3]), stride=down, groups=groups)


def filtered(x: Tensor, f: Tensor | None, gain: float, turn: bool) -> Tensor:
    if f is None:
        return x * gain
    n, c, h, w = x.shape
    taps = (f.flip([0, 1]) if turn else f)[None, None] * gain
    return TF.conv2d(x.reshape(n * c, 1, h, w), taps).unflatten(0, (n, c)).squeeze(2)


def errors() -> list[ErrorInput]:
    x, weight = torch.randn(2, 4, 5, 6), torch.randn(6, 4, 3, 3)

    def case(name: str, message: str, torch_call: Any = None, /, **arguments: Any) -> ErrorInput:
        keywords: dict[str, Any] = {"x": x, "weight": weight} | arguments

        def same() -> Tensor:
            return TF.conv2d(keywords["x"], keywords["weight"], groups=keywords.get("groups", 1))

        return ErrorInput(name, lambda impl: F.conv2d_resample(**keywords, impl=impl), torch_call or same, message)

    def transposed() -> Tensor:
        return TF.conv_transpose2d(x, weight, stride=0)

    return [
        case("channels", r"x must have 3 channels for a weight of shape \(6, 3, 3, 3\)", weight=weight[:, :3]),
        case("weight_rank", r"weight must have shape \[O, 4, k, l\]", lambda: x @ weight[0], weight=weight[0]),
        case("weight_dtype", "weight must have x's dtype", weight=weight.double()),
        case("weight_is_no_tensor", "weight must be a Tensor, got list", weight=[1.0]),
        case("integers", "x must have a floating-point dtype", x=x.long()),
        case("two_dimensions", r"x must have shape \[N, C, H, W\]", lambda: TF.conv2d(x[0, 0], weight), x=x[0, 0]),
        case("groups", "divisible by 4 groups", weight=weight[:, :1], groups=4),
        case("no_groups", "groups must be at least 1, got 0", groups=0),
        case("kernel_too_large", r"width 6 with up 1 and padding \(0, 0\)", weight=torch.randn(6, 4, 9, 9)),
        case("cropped", r"height 5 .* is 2", lambda: TF.conv2d(x[:, :, :2], weight), padding=[0, 0, -1, -2]),
        case("filter", "f must have shape .*, got", lambda: TF.conv2d(x, x[0]), f=x[0]),
        case("no_taps", r"f must .* not be empty, got \(0,\)", lambda: TF.conv2d(x, x[:0, :, :0]), f=x[0, 0, 0, :0]),
        case("up", "up must be a whole number of at least 1, got 0", transposed, up=0),
        case("down", "down must be a whole number of at least 1, got -1", transposed, down=-1),
    ]


SPEC = OpSpec(
    function=F.conv2d_resample,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("x", "weight"),
    layout=("x",),
    outputs_like=(),
    errors=errors,
    interpreted=False,  # its kernels are those of modulated_conv2d
    autocast=True,
)
