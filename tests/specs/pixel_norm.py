"""``pixel_norm``: samples, PyTorch's own version, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as TF

from gencore import functional as F
from tests.opspec import ErrorInput, OpSpec, Sample


def make(name: str, *shape: int, seed: int = 4, scale: float = 1.5, smooth: bool = True, **options: Any) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    return Sample(
        name, {"x": torch.randn(shape, dtype=torch.float64, generator=generator) * scale}, options, smooth=smooth
    )


def samples() -> list[Sample]:
    return [
        make("images", 3, 5, 6, 7),
        make("small", 2, 3, 3, 4),
        make("latent", 4, 16),
        make("last_dimension", 3, 4, 5, dim=-1),
        make("first_dimension", 6, 5, 2, dim=0, eps=1e-3),
        make("vector", 9, dim=0),
        make("one_channel", 4, 1, 3, 3, eps=0.1),
        make("many_channels", 2, 131, 3, 5),
        make("wide", 2, 9, 5, 37),
        make("many_in_a_row", 2, 2100),
        make("tiny_values", 2, 4, 3, 3, scale=1e-3, smooth=False),
        make("empty", 0, 3, 4, 4),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    size = (draw(st.integers(2, 4)), draw(st.integers(1, 40)), *draw(st.lists(st.integers(1, 12), max_size=3)))
    # Over a single value the norm is the value's sign, and the gradient nothing but rounding.
    dim = draw(st.sampled_from([d for d in range(-len(size), len(size)) if size[d] > 1] or [0]))
    return make("drawn", *size, seed=draw(st.integers(0, 999)), dim=dim, eps=draw(st.sampled_from([1e-8, 1e-2])))


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
    """The square root of the mean of squares, and a division."""
    x = tensors["x"]
    assert x is not None
    return (x / torch.sqrt(torch.mean(x**2, dim=options.get("dim", 1), keepdim=True) + options.get("eps", 1e-8)),)


def errors() -> list[ErrorInput]:
    x = torch.randn(4, 3, 2, 2)

    def case(name: str, message: str, torch_call: Any, /, **arguments: Any) -> ErrorInput:
        keywords: dict[str, Any] = {"x": x} | arguments
        return ErrorInput(name, lambda impl: F.pixel_norm(**keywords, impl=impl), torch_call, message)

    return [
        case("integer", "x must have a floating-point dtype", lambda: x.long().mean(1), x=x.long()),
        case("not_a_tensor", "x must be a Tensor, got list", lambda: torch.mean([1.0]), x=[1.0]),
        case("dim", "dim must be one of x's 4 dimensions, got -5", lambda: x.mean(-5), dim=-5),
        case("eps", "eps must not be negative, got -1", lambda: TF.batch_norm(x, None, None, training=True, eps=-1.0),
             eps=-1.0),
    ]  # fmt: skip


def large(device: str, impl: str) -> None:
    """2^31 + 2^20 elements, zero but for the last image."""
    images = (1 << 11) + 1
    x = torch.zeros((images, 16, 256, 256), dtype=torch.bfloat16, device=device)
    x[-1, ::2] = 2.0
    y = F.pixel_norm(x, impl=impl)
    for image, value in ((0, 0.0), (images // 2, 0.0), (images - 1, 2**0.5)):
        wanted = torch.full((16, 256, 256), value, dtype=x.dtype, device=device)
        wanted[1::2] = 0.0
        assert torch.equal(y[image], wanted)


SPEC = OpSpec(
    function=F.pixel_norm,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("x",),
    layout=("x",),
    errors=errors,
    large=large,
    large_bytes=10 << 30,
)
