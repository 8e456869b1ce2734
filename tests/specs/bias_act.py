"""``bias_act``: samples, PyTorch's own version, and bad input."""

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

ACTIVATIONS = {
    "linear": lambda u, alpha: u,
    "relu": lambda u, alpha: TF.relu(u),
    "lrelu": lambda u, alpha: TF.leaky_relu(u, alpha),
    "tanh": lambda u, alpha: torch.tanh(u),
    "sigmoid": lambda u, alpha: torch.sigmoid(u),
    "elu": lambda u, alpha: TF.elu(u),
    "selu": lambda u, alpha: TF.selu(u),
    "softplus": lambda u, alpha: TF.softplus(u),
    "swish": lambda u, alpha: TF.silu(u),
}
GAINS = {"relu": 2**0.5, "lrelu": 2**0.5, "swish": 2**0.5}


def make(name: str, *shape: int, bias: bool = True, seed: int = 5, scale: float = 1.5, **options: Any) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, dtype=torch.float64, generator=generator) * scale
    size = shape[options.get("dim", 1)]
    b = torch.randn(size, dtype=torch.float64, generator=generator) * 0.5 if bias else None
    return Sample(name, {"x": x, "b": b}, options)


def samples() -> list[Sample]:
    return [
        make("lrelu", 3, 5, 6, 7, act="lrelu"),
        make("clamped", 3, 5, 6, 7, act="lrelu", alpha=0.1, gain=0.7, clamp=0.5),
        make("linear_clamped", 3, 4, 5, 5, clamp=1.0),
        *(make(f"{act}_small", 2, 3, 2, 4, act=act) for act in ACTIVATIONS),
        *(make(f"{act}_wide", 2, 35, act=act, gain=1.5, clamp=2.0, scale=4.0) for act in ACTIVATIONS),
        make("last_dimension", 3, 4, 5, dim=-1, act="lrelu"),
        make("middle_dimension", 3, 4, 5, 2, dim=2, act="swish"),
        make("volume", 2, 3, 2, 3, 4, act="lrelu"),
        make("no_bias", 2, 3, 4, 5, bias=False, act="lrelu"),
        make("one_channel", 4, 1, 3, 3, act="elu"),
        make("large_images", 2, 3, 67, 71, act="lrelu"),
        make("many_channels", 5, 131, 3, 2, act="lrelu"),
        make("far_out", 2, 3, 5, 5, act="softplus", scale=60.0),
        make("empty", 0, 3, 4, 4, act="lrelu"),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    size = (draw(st.integers(1, 4)), draw(st.integers(1, 40)), *draw(st.lists(st.integers(1, 12), max_size=3)))
    return make(
        "drawn",
        *size,
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 999)),
        dim=draw(st.integers(-len(size), len(size) - 1)),
        act=draw(st.sampled_from(sorted(ACTIVATIONS))),
        alpha=draw(st.sampled_from([None, 0.0, 0.3, 1.0])),
        gain=draw(st.sampled_from([None, 0.5, 2.0])),
        clamp=draw(st.sampled_from([None, 0.25, 1.0])),
    )


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
    """An addition, the activation, a multiplication and a clamp."""
    x, b = tensors["x"], tensors["b"]
    assert x is not None
    if b is not None:
        shape = [1] * x.dim()
        shape[options.get("dim", 1)] = -1
        x = x + b.reshape(shape)
    act, alpha, gain = options.get("act", "linear"), options.get("alpha"), options.get("gain")
    y = ACTIVATIONS[act](x, 0.2 if alpha is None else alpha)
    y = y * (GAINS.get(act, 1.0) if gain is None else gain)
    clamp = options.get("clamp")
    return (y if clamp is None else y.clamp(-clamp, clamp),)


def errors() -> list[ErrorInput]:
    x, b = torch.randn(4, 3, 2, 2), torch.ones(3)

    def case(name: str, message: str, torch_call: Any, /, **arguments: Any) -> ErrorInput:
        keywords = {"x": x, "b": b} | arguments
        return ErrorInput(name, lambda impl: F.bias_act(**keywords, impl=impl), torch_call, message)

    def convolve(x: Any = x, b: Any = b) -> Tensor:
        return TF.conv2d(x, torch.ones(3, 3, 1, 1), b)

    known = "linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish; got 'gulu'"
    return [
        case("bias", r"b must have shape \(3,\), got \(2,\)", lambda: convolve(b=b[:2]), b=b[:2]),
        case("bias_of_another_dim", r"b must have shape \(2,\), got \(3,\)", lambda: convolve(b=b[:2]), dim=2),
        case("bias_is_a_matrix", r"b must have shape \(3,\)", lambda: convolve(b=b[None]), b=b[None]),
        case("bias_is_no_tensor", "b must be a Tensor, got float", lambda: convolve(b=1.0), b=1.0),
        case("integer", "x must have a floating-point dtype", lambda: convolve(x.long()), x=x.long()),
        case("not_a_tensor", "x must be a Tensor, got list", lambda: convolve([1.0]), x=[1.0]),
        case("device", "b is on meta", lambda: TF.batch_norm(x, b, b, b.to("meta")), b=b.to("meta")),
        case("dim", "dim must be one of x's 4 dimensions, got 4", lambda: x.sum(4), dim=4),
        case("gain_tensor", "gain must be a number, got a Tensor", lambda: x.flatten(b), gain=torch.ones([])),
        case("alpha_tensor", "alpha must be a number, got a Tensor", lambda: x.flatten(b), act="lrelu", alpha=b[0]),
        case("clamp_tensor", "clamp must be a number, got a Tensor", lambda: x.flatten(b), clamp=torch.ones([])),
        case("dim_float", "dim must be a whole number, got 1.0", lambda: x.sum(1.0), dim=1.0),
        case("activations", r"act must be one of .*; got \['lrelu'\]", lambda: calculate_gain("gulu"), act=["lrelu"]),
        case("activation", known, lambda: calculate_gain("gulu"), act="gulu"),
        case("clamp", "clamp must be None or at least 0, got -1", lambda: TF.dropout(x, -1.0), clamp=-1.0),
        case("clamp_nan", "clamp must be None or at least 0, got nan", lambda: TF.dropout(x, -1.0), clamp=float("nan")),
    ]


def large(device: str, impl: str) -> None:
    """2^31 + 2^20 elements, zero but for the last image."""
    images = (1 << 11) + 1
    x = torch.zeros((images, 16, 256, 256), dtype=torch.bfloat16, device=device)
    x[-1] = 1.0
    b = torch.arange(16.0, device=device)
    y = F.bias_act(x, b, act="relu", gain=2.0, impl=impl)
    for image, value in ((0, 0.0), (images // 2, 0.0), (images - 1, 1.0)):
        assert torch.equal(y[image], (2 * (b + value)).to(y.dtype)[:, None, None].expand(16, 256, 256))


SPEC = OpSpec(
    function=F.bias_act,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("x", "b"),
    layout=("x",),
    errors=errors,
    large=large,
    large_bytes=10 << 30,
)
