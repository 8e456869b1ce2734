"""``instance_norm_act``: samples, PyTorch's own version, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
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


def make(
    name: str,
    *shape: int,
    affine: str = "channel",
    residual: bool = False,
    offset: float = 0.5,
    seed: int = 13,
    smooth: bool = True,
    **options: Any,
) -> Sample:
    """``affine``: "channel" for weights ``[C]``, "sample" for ``[N, C]`` (AdaIN), "none"."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64, generator=generator)

    size = {"channel": shape[1:2], "sample": shape[:2]}.get(affine)
    tensors = {
        "x": draw(*shape) * 1.5 + offset,
        "weight": None if size is None else draw(*size),
        "bias": None if size is None else draw(*size),
        "residual": draw(*shape) if residual else None,
    }
    batch = ("weight", "bias") if affine == "sample" else ()
    return Sample(name, tensors, {"activation": "identity", **options}, smooth=smooth, batch=batch)


def samples() -> list[Sample]:
    result = [
        make("relu", 4, 6, 5, 7, activation="relu"),
        make("adaptive", 3, 5, 4, 6, affine="sample", activation="leaky_relu", negative_slope=0.2),
        make("residual", 3, 5, 4, 6, affine="none", residual=True),
    ]
    for activation in ACTIVATIONS:
        result.append(make(f"{activation}_small", 2, 3, 2, 3, activation=activation, residual=activation != "relu"))
    return [
        *result,
        make("adaptive_small", 2, 3, 3, 2, affine="sample", activation="silu"),
        make("sequence", 4, 5, 9, activation="tanh"),
        make("volume", 2, 3, 2, 3, 4, activation="leaky_relu", residual=True),
        make("bare", 4, 3, 3, 3, affine="none", activation="relu"),
        make("one_channel", 5, 1, 3, 3, activation="silu"),
        make("one_image", 1, 3, 5, 5, activation="leaky_relu"),
        make("one_row", 4, 7, 1, 5, activation="silu"),
        make("wide", 3, 131, 2, 3, activation="relu"),
        make("large_images", 2, 3, 97, 91, activation="leaky_relu", eps=1e-3),
        make("far_from_zero", 4, 48, 6, 6, offset=300.0, activation="silu", smooth=False),
        make("empty", 0, 3, 4, 4, activation="relu"),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    # Two values alone are always at -1 and 1: their gradient is a difference of which nothing but rounding is left.
    image = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple).filter(lambda size: prod(size) > 2)
    return make(
        "drawn",
        draw(st.integers(1, 5)),
        draw(st.integers(1, 19)),
        *draw(image),
        affine=draw(st.sampled_from(["channel", "sample", "none"])),
        residual=draw(st.booleans()),
        seed=draw(st.integers(0, 999)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        negative_slope=draw(st.sampled_from([0.0, 0.3, 1.0])),
    )


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
    """``torch.nn.functional``'s instance norm, an addition, and the activation; AdaIN's products in between."""
    x, weight, bias, residual = tensors.values()
    assert x is not None
    eps = options.get("eps", 1e-5)
    if x.numel() == 0:  # PyTorch refuses
        y = x
    elif weight is None or bias is None:
        y = TF.instance_norm(x, eps=eps)
    elif weight.dim() == 1:
        y = TF.instance_norm(x, weight=weight, bias=bias, eps=eps)
    else:
        weight, bias = (v.reshape(*v.shape, *[1] * (x.dim() - 2)) for v in (weight, bias))
        y = (TF.instance_norm(x, eps=eps) * weight + bias).to(x.dtype)
    y = y if residual is None else y + residual
    return (activate(y, options["activation"], options.get("negative_slope", 0.01)),)


def errors() -> list[ErrorInput]:
    x, c, wider = torch.randn(4, 3, 2, 2), torch.ones(3), torch.ones(4, 3, 2, 3)
    integers, matrix = torch.ones(4, 3, 2, dtype=torch.int64), x[0, 0]

    def case(name: str, message: str, torch_call: Any = None, /, **arguments: Any) -> ErrorInput:
        keywords: dict[str, Any] = {"x": x} | arguments

        def same() -> Any:
            known = {k: v for k, v in keywords.items() if k != "x"}
            return TF.instance_norm(keywords["x"], **known)

        return ErrorInput(name, lambda impl: F.instance_norm_act(**keywords, impl=impl), torch_call or same, message)

    return [
        case("weight", r"weight must have shape \(3,\), got \(2,\)", weight=torch.ones(2)),
        case("bias", r"bias must have shape \(3,\), got \(4,\)", bias=torch.ones(4)),
        case(
            "style",
            r"weight must have shape \(4, 3\), got \(3, 4\)",
            lambda: x * torch.ones(3, 4, 1, 1),
            weight=torch.ones(3, 4),
        ),
        case("one_value", "expected more than 1 spatial element", x=torch.randn(4, 3, 1, 1)),
        case("integer", "x must have a floating-point dtype, got torch.int64", x=integers),
        case("not_a_tensor", "x must be a Tensor, got list", lambda: torch.instance_norm([1.0]), x=[1.0, 2.0, 3.0]),
        case("weight_is_no_tensor", "weight must be a Tensor, got float", weight=1.0),
        case("device", "weight is on meta", weight=torch.ones(3, device="meta")),
        case("two_dimensions", r"x must have 3 to 5 dimensions", lambda: torch.nn.InstanceNorm2d(3)(matrix), x=matrix),
        case("activation", "activation must be one of", lambda: calculate_gain("gulu"), activation="gulu"),
        case("eps", "eps must not be negative", lambda: TF.batch_norm(x, c, c, eps=-1.0), eps=-1.0),
        case("eps_nan", "eps must not be .*, got nan", lambda: TF.batch_norm(x, c, c, eps=-1.0), eps=float("nan")),
        case("residual", "residual must have shape", lambda: x + wider, residual=wider),
    ]


SPEC = OpSpec(
    function=F.instance_norm_act,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("x", "weight", "bias", "residual"),
    layout=("x", "residual"),
    keep_float32=("weight", "bias"),
    errors=errors,
)
