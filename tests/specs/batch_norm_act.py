"""``batch_norm_act``: samples, PyTorch's own version, and bad input."""

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

ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "silu")


def make(
    name: str,
    *shape: int,
    affine: bool = True,
    running: bool = True,
    residual: bool = False,
    offset: float = 0.5,
    seed: int = 7,
    smooth: bool = True,
    **options: Any,
) -> Sample:
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64, generator=generator)

    channels = shape[1]
    tensors = {
        "x": draw(*shape) * 1.5 + offset,
        "weight": draw(channels) if affine else None,
        "bias": draw(channels) if affine else None,
        "running_mean": draw(channels) if running else None,
        "running_var": draw(channels).square() + 0.5 if running else None,
        "residual": draw(*shape) if residual else None,
    }
    return Sample(name, tensors, {"training": True, "activation": "identity", **options}, smooth=smooth)


def samples() -> list[Sample]:
    result = [
        make("leaky_relu", 4, 6, 5, 7, activation="leaky_relu", negative_slope=0.2),
        make("evaluation", 4, 6, 5, 7, training=False, activation="leaky_relu"),
        make("residual", 3, 5, 4, 6, activation="relu", residual=True),
    ]
    for activation in ACTIVATIONS:
        result.append(make(f"{activation}_small", 2, 3, 2, 3, activation=activation, residual=activation != "relu"))
        result.append(make(f"{activation}_eval", 2, 2, 3, 2, activation=activation, training=False))
    return [
        *result,
        make("matrix", 16, 5, activation="silu"),
        make("wide_matrix", 37, 270, activation="leaky_relu"),
        make("sequence", 4, 5, 9, activation="tanh"),
        make("volume", 2, 3, 2, 3, 4, activation="leaky_relu", residual=True),
        make("bare", 4, 3, 3, 3, affine=False, running=False, activation="relu"),
        make("bare_eval", 4, 3, 3, 3, affine=False, training=False, residual=True),
        make("one_channel", 5, 1, 3, 3, activation="silu"),
        make("one_pixel", 8, 3, 1, 1, activation="tanh"),
        make("one_image", 1, 3, 5, 5, activation="leaky_relu"),
        make("wide", 6, 131, activation="relu"),
        make("large_images", 2, 3, 37, 41, activation="leaky_relu", momentum=0.7, eps=1e-3),
        # Far from zero, E[x^2] - E[x]^2 would lose every digit. What is left is the rounding of the mean, a matter of
        # luck: over many channels PyTorch's and ours even out.
        make("far_from_zero", 4, 48, 6, 6, offset=300.0, activation="silu", smooth=False),
        make("empty_eval", 0, 3, 4, 4, training=False, activation="relu"),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    image = st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple)
    size = (draw(st.integers(2, 6)), draw(st.integers(1, 19)), *draw(image))
    return make(
        "drawn",
        *size,
        affine=draw(st.booleans()),
        running=True,
        residual=draw(st.booleans()),
        seed=draw(st.integers(0, 999)),
        training=draw(st.booleans()),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        negative_slope=draw(st.sampled_from([0.0, 0.01, 0.3, 1.0])),
    )


def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
    """``torch.nn.functional``'s batch norm, then an addition, then the activation."""
    x, residual = tensors["x"], tensors["residual"]
    assert x is not None
    settings = {"training": False, "momentum": 0.1, "eps": 1e-5} | {
        k: v for k, v in options.items() if k in ("training", "momentum", "eps")
    }
    mean, var, weight, bias = (tensors[n] for n in ("running_mean", "running_var", "weight", "bias"))
    y = TF.batch_norm(x, mean, var, weight, bias, **settings)
    y = y if residual is None else y + residual
    match options["activation"]:
        case "relu":
            return (TF.relu(y),)
        case "leaky_relu":
            return (TF.leaky_relu(y, options.get("negative_slope", 0.01)),)
        case "tanh":
            return (torch.tanh(y),)
        case "silu":
            return (TF.silu(y),)
    return (y,)


def errors() -> list[ErrorInput]:
    x, c, wider = torch.randn(4, 3, 2, 2), torch.ones(3), torch.ones(4, 3, 2, 3)

    def case(name: str, message: str, torch_call: Any = None, /, **arguments: Any) -> ErrorInput:
        keywords: dict[str, Any] = {"x": x, "running_mean": c, "running_var": c, "training": False} | arguments

        def same() -> Any:
            known = {k: v for k, v in keywords.items() if k != "x"}
            return TF.batch_norm(keywords["x"], **known)

        return ErrorInput(name, lambda impl: F.batch_norm_act(**keywords, impl=impl), torch_call or same, message)

    return [
        case("weight", r"weight must have shape \(3,\), got \(2,\)", weight=torch.ones(2)),
        case("bias", r"bias must have shape \(3,\), got \(4,\)", bias=torch.ones(4)),
        case("running_mean", r"running_mean must have shape \(3,\), got \(2,\)", running_mean=torch.ones(2)),
        case("running_var", r"running_var must have shape \(3,\), got \(4,\)", running_var=torch.ones(4)),
        case("no_statistics", "running_mean and running_var must be given", running_mean=None, running_var=None),
        case("one_value", "expected more than 1 value per channel", x=torch.randn(1, 3, 1, 1), training=True),
        case("integer", "x must have a floating-point dtype, got torch.int64", x=torch.ones(4, 3, dtype=torch.int64)),
        case("not_a_tensor", "x must be a Tensor, got list", x=[1.0, 2.0, 3.0]),
        case("weight_is_no_tensor", "weight must be a Tensor, got float", weight=1.0),
        case("device", "weight is on meta", weight=torch.ones(3, device="meta")),
        case("one_dimension", r"x must have 2 to 5 dimensions", lambda: torch.nn.BatchNorm1d(3)(x[0, 0, 0]), x=c),
        case("activation", "activation must be one of", lambda: calculate_gain("gulu"), activation="gulu"),
        case("eps", "eps must not be negative", lambda: TF.batch_norm(x, c, c, eps=-1.0), eps=-1.0),
        case("eps_nan", "eps must not be .*, got nan", lambda: TF.batch_norm(x, c, c, eps=-1.0), eps=float("nan")),
        case("residual", "residual must have shape", lambda: x + wider, residual=wider),
        case("residual_dtype", "residual must have x's", lambda: torch.lerp(x, x.double(), 0.5), residual=x.double()),
    ]


def large(device: str, impl: str) -> None:
    """2^31 + 2^20 elements, zero but for the last image: values past 2^31 must be right, in both modes."""
    images = (1 << 11) + 1
    x = torch.zeros((images, 16, 256, 256), dtype=torch.bfloat16, device=device)
    x[-1] = 1.0
    bias = torch.arange(16.0, device=device)
    zeros, ones = torch.zeros(16, device=device), torch.ones(16, device=device)
    y = F.batch_norm_act(x, None, bias, zeros, ones, training=False, eps=0.0, impl=impl)
    for image, value in ((0, 0.0), (images // 2, 0.0), (images - 1, 1.0)):
        assert torch.equal(y[image], (bias + value).to(y.dtype)[:, None, None].expand(16, 256, 256))
    del y
    mean = zeros.clone()
    y = F.batch_norm_act(x, None, None, mean, ones.clone(), training=True, momentum=1.0, impl=impl)
    torch.testing.assert_close(mean, torch.full_like(mean, 1 / images), rtol=1e-5, atol=0)
    expected = (1 - 1 / images) / ((1 / images) * (1 - 1 / images) + 1e-5) ** 0.5
    torch.testing.assert_close(y[-1].float(), torch.full((16, 256, 256), expected, device=device), rtol=2**-8, atol=0)
    del y
    if device == "cuda":
        x.requires_grad_()
        y = F.batch_norm_act(x, None, bias, zeros, ones, training=False, eps=0.0, activation="relu", impl=impl)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert torch.equal(grad[-1], torch.ones_like(grad[-1]))
        assert torch.equal(grad[0, 0], torch.zeros_like(grad[0, 0]))


SPEC = OpSpec(
    function=F.batch_norm_act,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("x", "weight", "bias", "residual"),
    layout=("x", "residual"),
    buffers=("running_mean", "running_var"),
    keep_float32=("weight", "bias", "running_mean", "running_var"),
    errors=errors,
    large=large,
    large_bytes=10 << 30,
)
