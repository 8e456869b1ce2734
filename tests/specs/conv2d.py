"""``conv2d``: samples, PyTorch's own version, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from gencore import functional as F
from gencore.reference.activation import activate
from tests.opspec import ErrorInput, OpSpec, Sample


def _sample(name: str, shape: tuple[int, ...], weight: tuple[int, ...], seed: int = 5, **options: Any) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    fan_in = weight[1] * weight[2] * weight[3]
    draw = lambda *s: torch.randn(s, dtype=torch.float64, generator=generator)  # noqa: E731
    bias = draw(weight[0]) if options.pop("bias", True) else None
    return Sample(name, {"input": draw(*shape), "weight": draw(*weight) / fan_in**0.5, "bias": bias}, options)


def samples() -> list[Sample]:
    return [
        _sample("plain", (2, 5, 6, 7), (4, 5, 3, 3), padding=1),
        _sample("strided", (2, 3, 8, 8), (6, 3, 4, 4), stride=2, padding=1, bias=False),
        _sample("grouped", (2, 4, 5, 5), (6, 2, 3, 2), groups=2, dilation=2, padding=(2, 1)),
        _sample("depthwise", (2, 3, 4, 4), (3, 1, 3, 3), groups=3, padding=1),
        _sample("one_by_one", (3, 7, 1, 1), (5, 7, 1, 1)),
        _sample("one_channel", (1, 1, 5, 5), (1, 1, 3, 3)),
        _sample("tanh", (2, 5, 4, 4), (3, 5, 3, 3), activation="tanh"),
        _sample("empty_batch", (0, 3, 4, 4), (2, 3, 3, 3)),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    groups = draw(st.sampled_from([1, 1, 2]))
    n, c, o, h, w = (draw(st.integers(1, k)) for k in (4, 5, 20, 6, 6))
    kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    options = {"stride": draw(st.integers(1, 2)), "padding": 1, "groups": groups, "seed": draw(st.integers(0, 99))}
    return _sample("drawn", (n, c * groups, h, w), (o * groups, c, *kernel), **options)


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
    rest = dict(options)
    activation = rest.pop("activation", "identity")
    return (activate(torch.nn.functional.conv2d(*tensors.values(), **rest), activation),)  # type: ignore[arg-type]


def errors() -> list[ErrorInput]:
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3)

    def case(name: str, message: str, *arguments: Any, **options: Any) -> ErrorInput:
        return ErrorInput(
            name,
            lambda impl: F.conv2d(*arguments, **options, impl=impl),
            lambda: torch.nn.functional.conv2d(*arguments, **options),
            message,
        )

    return [
        case("channels", r"input must have 4 channels .* got 3", x[:, :3], weight),
        case("dtype", r"weight must have input's dtype torch.float32, got torch.float64", x, weight.double()),
        case("bias", r"bias must have shape \(6,\), got \(5,\)", x, weight, torch.ones(5)),
        case("stride", r"stride must be at least 1, got 0", x, weight, stride=0),
        case("padding", r"padding must be at least 0, got -1", x, weight, padding=-1),
        case("groups", r"divisible by groups", x, weight, groups=4),
        case("kernel", r"must not be smaller than the kernel", x[..., :2], weight),
        case("not_a_tensor", r"input must be a Tensor, got list", [1.0], weight),
    ]


SPEC = OpSpec(
    function=F.conv2d,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("input", "weight", "bias"),
    layout=("input",),
    outputs_like=(),
    errors=errors,
    same_bits_at_any_thread_count=False,  # the bias gradient is PyTorch's sum
)
