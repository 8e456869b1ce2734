"""``minibatch_stddev``: samples, PyTorch's own version, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from gencore import functional as F
from tests.opspec import ErrorInput, OpSpec, Sample


def make(name: str, *shape: int, seed: int = 4, offset: float = 0.5, **options: Any) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    return Sample(name, {"x": torch.randn(shape, dtype=torch.float64, generator=generator) + offset}, options)


def samples() -> list[Sample]:
    return [
        make("images", 8, 6, 3, 4),
        make("pairs", 4, 3, 2, 2, group_size=2),
        make("two_maps", 4, 4, 2, 3, num_channels=2),
        make("whole_batch", 6, 2, 3, 2, group_size=None),
        make("small_batch", 3, 2, 2, 2),
        make("matrix", 8, 5),
        make("volume", 4, 2, 2, 2, 3),
        make("one_pixel", 4, 3, 1, 1),
        make("lone_samples", 2, 3, 2, 2, group_size=1),
        make("blocks", 4, 2, 33, 40, group_size=2),
        make("wide_slices", 2, 70, 3, 5, num_channels=2),
        make("empty", 4, 3, 0, 2),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    group, maps = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    size = (group * draw(st.integers(1, 3)), maps * draw(st.integers(1, 5)), draw(st.integers(1, 6)), 3)
    return make("drawn", *size, seed=draw(st.integers(0, 999)), group_size=group, num_channels=maps)


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
    """Group by group."""
    x = tensors["x"]
    assert x is not None
    n, c, *size = x.shape
    group = options.get("group_size", 4)
    group = n if group is None else min(group, n)
    maps = options.get("num_channels", 1)
    groups = n // group
    columns = []
    for part in x.split(c // maps, dim=1):
        deviations = [part[m::groups] - part[m::groups].mean(0) for m in range(groups)]
        values = [((d**2).mean(0) + 1e-8).sqrt().mean() for d in deviations]
        columns.append(torch.stack(values * group))
    statistic = torch.stack(columns, dim=1).reshape(n, maps, *[1] * len(size))
    return (torch.cat([x, statistic.expand(n, maps, *size)], dim=1),)


def errors() -> list[ErrorInput]:
    x = torch.randn(6, 3, 2, 2)

    def case(name: str, message: str, torch_call: Any, /, **arguments: Any) -> ErrorInput:
        keywords: dict[str, Any] = {"x": x} | arguments
        return ErrorInput(name, lambda impl: F.minibatch_stddev(**keywords, impl=impl), torch_call, message)

    return [
        case("group", "group_size must be at least 1 and divide the batch of 6, got 4", lambda: x.reshape(4, -1, 3, 4)),
        case("no_group", "group_size .* got 0", lambda: x.reshape(0, 7), group_size=0),
        case("maps", "num_channels must be at least 1 and divide the 3 channels, got 2",
             lambda: x.reshape(6, 2, -1, 8), group_size=3, num_channels=2),
        case("integer", "x must have a floating-point dtype", lambda: x.long().mean(0), x=x.long()),
        case("empty", "at least one sample", lambda: x[:0].reshape(-1, 0), x=x[:0]),
        case("vector", r"x must have shape \[N, C, ...\]", lambda: torch.conv2d(x[:, 0, 0, 0], x), x=x[:, 0, 0, 0]),
        case("not_a_tensor", "x must be a Tensor, got list", lambda: torch.var([1.0]), x=[1.0]),
    ]  # fmt: skip


def large(device: str, impl: str) -> None:
    """2^31 + 2^18 elements, zero but for the last sample of four."""
    x = torch.zeros((4, 8, 8192, 8193), dtype=torch.bfloat16, device=device)
    x[3] = 1.0
    y = F.minibatch_stddev(x, impl=impl)
    stddev = torch.tensor(0.1875**0.5).to(x.dtype).to(device)
    assert (y[:, 8] == stddev).all()
    assert (y[3, :8] == 1.0).all()
    assert (y[2, :8] == 0.0).all()


SPEC = OpSpec(
    function=F.minibatch_stddev,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("x",),
    layout=("x",),
    outputs_like=(),
    errors=errors,
    large=large,
    large_bytes=12 << 30,
)
