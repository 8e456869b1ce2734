"""``linear``: samples, PyTorch's own version, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from gencore import functional as F
from gencore.reference.activation import activate
from tests.opspec import ErrorInput, OpSpec, Sample


def _sample(
    name: str, shape: tuple[int, ...], out: int, bias: bool = True, scale: int = 0, seed: int = 3, **options: Any
) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(s, dtype=torch.float64, generator=generator)  # noqa: E731
    weight = draw(out, shape[-1]) / max(shape[-1], 1) ** 0.5
    tensors = {
        "input": draw(*shape),
        "weight": weight,
        "bias": draw(out) if bias else None,
        "scale": 1 + 0.5 * draw(scale) if scale else None,
    }
    return Sample(name, tensors, options)


def samples() -> list[Sample]:
    return [
        _sample("relu", (7, 33), 20, activation="relu"),
        _sample("sequence", (2, 3, 16), 5, activation="leaky_relu", negative_slope=0.2),
        _sample("bare", (70, 130), 37, bias=False),
        _sample("scaled", (5, 40), 21, scale=21, activation="relu"),
        _sample("tanh", (3, 4), 5, activation="tanh"),
        _sample("silu", (3, 4), 5, activation="silu"),
        _sample("small_relu", (3, 4), 5, activation="relu", scale=1),
        _sample("one_row", (1, 600), 70),
        _sample("one_number", (1, 1), 1),
        _sample("empty_batch", (0, 5), 4),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    shape = (*draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)), draw(st.integers(1, 40)))
    activation = draw(st.sampled_from(["identity", "tanh", "silu"]))
    out = draw(st.integers(1, 70))
    options = {
        "bias": draw(st.booleans()),
        "scale": draw(st.sampled_from([0, 1, out])),
        "seed": draw(st.integers(0, 99)),
    }
    return _sample("drawn", shape, out, **options, activation=activation)


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
    x, weight, bias, scale = (tensors[name] for name in ("input", "weight", "bias", "scale"))
    assert x is not None
    assert weight is not None
    y = torch.nn.functional.linear(x, weight, bias if scale is None else None)
    if scale is not None:
        y = y * scale if bias is None else y * scale + bias
    return (activate(y, options.get("activation", "identity"), options.get("negative_slope", 0.01)),)


def errors() -> list[ErrorInput]:
    x, weight = torch.ones(2, 3), torch.ones(4, 3)

    def case(name: str, message: str, *arguments: Any) -> ErrorInput:
        return ErrorInput(
            name,
            lambda impl: F.linear(*arguments, impl=impl),
            lambda: torch.nn.functional.linear(*arguments),
            message,
        )

    return [
        case("features", r"input must have shape \[\.\.\., 2\]", x, weight[:, :2]),
        case("bias", r"bias must have shape \(4,\), got \(3,\)", x, weight, torch.ones(3)),
        case("dtype", r"weight must have input's dtype torch.float32, got torch.float64", x, weight.double()),
        case("not_a_tensor", r"weight must be a Tensor, got list", x, [1.0]),
    ]


SPEC = OpSpec(
    function=F.linear,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("input", "weight", "bias", "scale"),
    layout=("input",),
    outputs_like=(),
    errors=errors,
    autocast=True,
    same_bits_at_any_thread_count=False,  # the bias gradient is PyTorch's sum
)
