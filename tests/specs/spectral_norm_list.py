"""``spectral_norm_list``: three layers in one call, by the names that the generic tests know."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from gencore import functional as F
from tests.opspec import ErrorInput, OpSpec, Sample
from tests.specs import spectral_norm as single

LAYERS = range(3)


def spectral_norm_list(*, impl: str, **arguments: Any) -> tuple[Tensor, ...]:
    """``F.spectral_norm_list`` of ``weight0, u0, v0, weight1, ...``; all results in a row."""
    lists = [[arguments.pop(f"{name}{i}") for i in LAYERS] for name in ("weight", "u", "v")]
    normal, sigma = F.spectral_norm_list(*lists, **arguments, impl=impl)
    return *normal, *sigma


def join(name: str, *layers: Sample, **options: Any) -> Sample:
    tensors = {f"{key}{i}": x for i, layer in enumerate(layers) for key, x in layer.tensors.items()}
    options = {"training": True, "dims": [layer.options["dim"] for layer in layers], **options}
    batch = tuple(f"{key}{i}" for i, layer in enumerate(layers) for key in layer.batch)
    return Sample(name, tensors, options, batch=batch)


def samples() -> list[Sample]:
    conv, transposed = single.make("", 12, 5, 3, 3), single.make("", 10, 6, 4, 4, dim=1, seed=8)
    tiny = [single.make("", 7, 11, seed=9), single.make("", 2, 3, 2, dim=1, seed=10), single.make("", 1, 5, seed=11)]
    return [
        join("network", conv, transposed, tiny[0]),
        join("u_first", transposed, tiny[1], conv, v_first=False, n_power_iterations=2),
        join("evaluation", *tiny, training=False),
        join("empty", conv, single.make("", 0, 5), tiny[2]),
        join("first_alone_written", *tiny, training=False, written=[True, False, False]),
        join("last_not_written", tiny[1], conv, transposed, written=[True, True, False]),
        # One layer of this is cut among the threads, the others are not.
        join("large", single.make("", 260, 64, 4, 4), conv, single.make("", 30, 40, 4, 4, dim=1)),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    layers = []
    for _ in LAYERS:
        size = draw(st.lists(st.integers(1, 12), min_size=2, max_size=4))
        layers.append(single.make("", *size, dim=draw(st.integers(0, len(size) - 1)), seed=draw(st.integers(0, 99))))
    written = [True, draw(st.booleans()), draw(st.booleans())]  # the first: the tests look at the layout of its result
    options = {"n_power_iterations": draw(st.integers(0, 2)), "v_first": draw(st.booleans()), "written": written}
    return join("drawn", *layers, **options)


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor, ...]:
    rest = {"n_power_iterations": 1, **{k: v for k, v in options.items() if k not in ("dims", "written")}}
    layers = [
        single.composite(
            {k: tensors[f"{k}{i}"] for k in ("weight", "u", "v")}, {**rest, "dim": options["dims"][i]}, seed
        )
        for i in LAYERS
    ]
    written = options.get("written", [True] * len(layers))
    return *(normal for normal, _ in compress(layers, written)), *(sigma for _, sigma in layers)


def errors() -> list[ErrorInput]:
    weight, u, v = torch.randn(4, 6), torch.ones(4), torch.ones(6)

    def case(name: str, message: str, torch_call: Any, /, *lists: Any, **options: Any) -> ErrorInput:
        return ErrorInput(name, lambda impl: F.spectral_norm_list(*lists, **options, impl=impl), torch_call, message)

    return [
        case("count", "us must have 2 entries, one a weight; got 1", lambda: list(zip([u], [u, u], strict=True)),
             [weight, weight], [u], [v, v]),
        case("dims", "dims must have 1 entries", lambda: list(zip([u], [u, u], strict=True)),
             [weight], [u], [v], dims=[0, 0]),
        case("written", "written must have 1 entries", lambda: list(zip([u], [u, u], strict=True)),
             [weight], [u], [v], written=[True, False]),
        case("second_u", r"us\[1\] must have shape \(4,\), got \(3,\)", lambda: torch.mv(weight, torch.ones(3)),
             [weight] * 2, [u, torch.ones(3)], [v, v]),
        case("dtypes", r"weights\[1\] must have the dtype of weights\[0\]", lambda: torch.mv(weight.double(), v),
             [weight, weight.double()], [u, u.double()], [v, v.double()]),
    ]  # fmt: skip


SPEC = OpSpec(
    function=spectral_norm_list,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=tuple(f"weight{i}" for i in LAYERS),
    layout=tuple(f"weight{i}" for i in LAYERS),
    outputs_like=(0,),
    buffers=tuple(f"{key}{i}" for i in LAYERS for key in "uv"),
    keep_float32=tuple(f"{key}{i}" for i in LAYERS for key in "uv"),
    errors=errors,
)
