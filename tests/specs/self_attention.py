"""``self_attention``: samples, PyTorch's own version, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from gencore import functional as F
from tests.opspec import ErrorInput, OpSpec, Sample


def make(name: str, *lead: int, n: int, m: int, d: int, dv: int, seed: int = 7, **options: Any) -> Sample:
    """Scores have a standard deviation of about 1."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"query": (*lead, n, d), "key": (*lead, m, d), "value": (*lead, m, dv)}
    tensors: dict[str, Tensor] = {
        k: torch.randn(size, dtype=torch.float64, generator=generator) for k, size in shapes.items()
    }
    tensors["query"] /= max(d, 1) ** 0.5
    return Sample(name, tensors, options)


def samples() -> list[Sample]:
    return [
        make("sagan", 2, n=36, m=9, d=3, dv=12),
        make("not_pooled", 2, n=25, m=25, d=2, dv=7, scale=0.7),
        make("many_keys", 1, n=5, m=300, d=8, dv=5),
        make("small", 2, n=4, m=3, d=2, dv=3, seed=9),
        make("one_query", 2, n=1, m=7, d=3, dv=2, scale=-1.5),
        make("two_keys", 2, n=6, m=2, d=3, dv=2),
        make("heads", 2, 3, n=3, m=4, d=1, dv=2),
        make("wide", 1, n=19, m=40, d=70, dv=130),
        make("ragged", 3, n=67, m=71, d=17, dv=33),
        make("long", 1, n=257, m=513, d=8, dv=32),
        make("no_width", 2, n=5, m=6, d=0, dv=3),
        make("no_values", 2, n=5, m=6, d=3, dv=0),
        make("empty_batch", 0, n=5, m=6, d=3, dv=3),
        make("empty_queries", 2, n=0, m=6, d=3, dv=3),
        make("empty_keys", 2, n=5, m=0, d=3, dv=3),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    return make(
        "drawn",
        draw(st.integers(1, 3)),
        n=draw(st.integers(1, 70)),
        m=draw(st.integers(1, 70)),
        d=draw(st.integers(1, 40)),
        dv=draw(st.integers(1, 70)),
        seed=draw(st.integers(0, 999)),
        # Flat weights: what sharp ones cost the gradients of queries and keys has a test of its own.
        scale=draw(st.sampled_from([0.3, 0.1, -0.2])),
    )


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
    """bmm, softmax, bmm, as SAGAN's code has it."""
    query, key, value = tensors["query"], tensors["key"], tensors["value"]
    assert query is not None
    assert key is not None
    assert value is not None
    return (torch.softmax(options.get("scale", 1.0) * (query @ key.mT), -1) @ value,)


def errors() -> list[ErrorInput]:
    query, key, value = torch.randn(2, 5, 3), torch.randn(2, 6, 3), torch.randn(2, 6, 4)

    def case(name: str, message: str, torch_call: Any = None, /, **arguments: Any) -> ErrorInput:
        keywords: dict[str, Any] = {"query": query, "key": key, "value": value} | arguments

        def same() -> Any:
            return torch.bmm(torch.softmax(torch.bmm(keywords["query"], keywords["key"].mT), -1), keywords["value"])

        return ErrorInput(name, lambda impl: F.self_attention(**keywords, impl=impl), torch_call or same, message)

    return [
        case("width", r"key must have shape \[2, M, 3\] .* got \(2, 6, 4\)", key=torch.randn(2, 6, 4)),
        case("batch", r"key must have shape \[2, M, 3\] .* got \(3, 6, 3\)", key=torch.randn(3, 6, 3)),
        case("count", r"value must have shape \[2, 6, dv\] .* got \(2, 5, 4\)", value=torch.randn(2, 5, 4)),
        case("dtype", "value must have query's dtype torch.float32, got torch.float64", value=value.double()),
        case("integer", "query must have a floating-point dtype", query=torch.ones(2, 5, 3, dtype=torch.int64)),
        case("vector", "query must have at least 2 dimensions", query=torch.ones(3)),
        case("no_tensor", "key must be a Tensor, got NoneType", lambda: torch.bmm(query, None), key=None),
        case("device", "key is on meta", lambda: torch.lerp(key, key.to("meta"), 0.5), key=key.to("meta")),
    ]


SPEC = OpSpec(
    function=F.self_attention,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("query", "key", "value"),
    layout=("query", "key", "value"),
    outputs_like=(),
    errors=errors,
    autocast=True,
)
