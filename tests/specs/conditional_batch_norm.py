"""``conditional_batch_norm``: samples, PyTorch's own version, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as TF
from torch.nn.init import calculate_gain

from gencore import functional as F
from gencore.reference.activation import activate
from tests.opspec import ErrorInput, OpSpec, Sample
from tests.specs.batch_norm_act import ACTIVATIONS


def make(name: str, *shape: int, running: bool = True, seed: int = 11, **options: Any) -> Sample:
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64, generator=generator)

    channels = shape[1]
    tensors = {
        "x": draw(*shape) * 1.5 + 0.5,
        "gain": 1 + 0.5 * draw(*shape[:2]),
        "bias": draw(*shape[:2]),
        "running_mean": draw(channels) if running else None,
        "running_var": draw(channels).square() + 0.5 if running else None,
    }
    return Sample(name, tensors, {"training": True, "activation": "identity", **options}, batch=("gain", "bias"))


def samples() -> list[Sample]:
    result = [
        make("relu", 4, 6, 5, 7, activation="relu"),
        make("evaluation", 4, 6, 5, 7, training=False, activation="relu"),
        make("small_images", 5, 3, 4, 4, activation="leaky_relu", negative_slope=0.2),
    ]
    for activation in ACTIVATIONS:
        result.append(make(f"{activation}_small", 2, 3, 2, 3, activation=activation))
        result.append(make(f"{activation}_eval", 2, 2, 3, 2, activation=activation, training=False))
    return [
        *result,
        make("matrix", 16, 5, activation="silu"),
        make("sequence", 4, 5, 9, activation="tanh"),
        make("volume", 2, 3, 2, 3, 4, activation="leaky_relu"),
        make("bare", 4, 3, 3, 3, running=False, activation="relu"),
        make("one_channel", 5, 1, 3, 3, activation="silu"),
        make("one_pixel", 8, 3, 1, 1, activation="tanh"),
        make("one_image", 1, 3, 5, 5, activation="leaky_relu"),
        make("wide", 3, 131, 2, 2, activation="relu"),
        # Planes of more than one chunk of the statistics.
        make("large_images", 2, 3, 97, 91, activation="leaky_relu", momentum=0.7, eps=1e-3),
        make("empty_eval", 0, 3, 4, 4, training=False, activation="relu"),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    image = st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple)
    return make(
        "drawn",
        draw(st.integers(3, 6)),  # of two values a channel the gradient is nothing but rounding
        draw(st.integers(1, 19)),
        *draw(image),
        seed=draw(st.integers(0, 999)),
        training=draw(st.booleans()),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        negative_slope=draw(st.sampled_from([0.0, 0.3, 1.0])),
    )


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
    """``torch.nn.functional``'s batch norm without weights, then the products and sums, then the activation."""
    x, gain, bias, mean, var = tensors.values()
    assert x is not None
    assert gain is not None
    assert bias is not None
    settings = {"training": False, "momentum": 0.1, "eps": 1e-5} | {
        k: v for k, v in options.items() if k in ("training", "momentum", "eps")
    }
    y = TF.batch_norm(x, mean, var, None, None, **settings)
    gain, bias = (v.reshape(*v.shape, *[1] * (x.dim() - 2)) for v in (gain, bias))
    return (activate((y * gain + bias).to(x.dtype), options["activation"], options.get("negative_slope", 0.01)),)


def errors() -> list[ErrorInput]:
    x, c, nc = torch.randn(4, 3, 2, 2), torch.ones(3), torch.ones(4, 3)

    def case(name: str, message: str, torch_call: Any = None, /, **arguments: Any) -> ErrorInput:
        keywords: dict[str, Any] = {"x": x, "gain": nc, "bias": nc, "running_mean": c, "running_var": c} | arguments

        def same() -> Any:
            known = {k: v for k, v in keywords.items() if k not in ("gain", "bias", "x")}
            return TF.batch_norm(keywords["x"], **known) * keywords["gain"].view(4, 3, 1, 1)

        return ErrorInput(
            name, lambda impl: F.conditional_batch_norm(**keywords, impl=impl), torch_call or same, message
        )

    return [
        case(
            "gain", r"gain must have shape \(4, 3\), got \(3, 4\)", lambda: x * torch.ones(3, 4), gain=torch.ones(3, 4)
        ),
        case("bias", r"bias must have shape \(4, 3\), got \(3,\)", lambda: x + torch.ones(3), bias=c),
        case("gain_is_missing", "gain must be a Tensor, got NoneType", lambda: torch.mul(x, None), gain=None),
        case("running_mean", r"running_mean must have shape \(3,\), got \(2,\)", running_mean=torch.ones(2)),
        case("no_statistics", "running_mean and running_var must be given", running_mean=None, running_var=None),
        case(
            "one_value",
            "expected more than 1 value per channel",
            x=torch.randn(1, 3, 1, 1),
            gain=nc[:1],
            bias=nc[:1],
            training=True,
        ),
        case("integer", "x must have a floating-point dtype, got torch.int64", x=torch.ones(4, 3, dtype=torch.int64)),
        case("not_a_tensor", "x must be a Tensor, got list", x=[1.0, 2.0, 3.0]),
        case("device", "gain is on meta", gain=torch.ones(4, 3, device="meta")),
        case("one_dimension", r"x must have 2 to 5 dimensions", lambda: torch.nn.BatchNorm1d(3)(x[0, 0, 0]), x=c),
        case("activation", "activation must be one of", lambda: calculate_gain("gulu"), activation="gulu"),
        case("eps", "eps must not be negative", lambda: TF.batch_norm(x, c, c, eps=-1.0), eps=-1.0),
        case("eps_nan", "eps must not be .*, got nan", lambda: TF.batch_norm(x, c, c, eps=-1.0), eps=float("nan")),
    ]


SPEC = OpSpec(
    function=F.conditional_batch_norm,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("x", "gain", "bias"),
    layout=("x",),
    buffers=("running_mean", "running_var"),
    keep_float32=("gain", "bias", "running_mean", "running_var"),
    errors=errors,
)
