"""``attention_block``: PyTorch's values and gradients, the closed gate, layouts, compilation, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import gencore
from gencore import functional as F
from gencore.dispatch import OPS
from gencore.extension import EXTENSION
from tests.opspec import same_layout

IMPLEMENTATIONS = [name for name in OPS["attention_block"].implementations if name != "triton"]

SIZES: dict[str, dict[str, Any]] = {
    "pooled": {"x": (2, 16, 8, 8), "d": 2, "dv": 8, "pool": True},
    "paper": {"x": (2, 16, 5, 6), "d": 2, "dv": 2},
    "odd": {"x": (1, 9, 7, 5), "d": 3, "dv": 5, "pool": True, "scale": 0.5},
    "wide": {"x": (1, 64, 16, 16), "d": 8, "dv": 32, "pool": True},
    "one_pixel": {"x": (3, 5, 1, 1), "d": 2, "dv": 3},
    "empty": {"x": (0, 4, 3, 3), "d": 2, "dv": 2},
}


def make(
    x: tuple[int, ...], d: int, dv: int, gamma: float = 0.8, **options: Any
) -> tuple[list[Tensor], dict[str, Any]]:
    """x, the four weights and gamma in float64, and the options."""
    generator = torch.Generator().manual_seed(7)
    c = x[1]

    def draw(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64, generator=generator) / size[1] ** 0.5

    weights = [draw(d, c, 1, 1), draw(d, c, 1, 1), draw(dv, c), draw(c, dv, 1, 1)]
    return [draw(*x) * c**0.5, *weights, torch.tensor(gamma, dtype=torch.float64)], options


def composite(x: Tensor, *rest: Tensor, pool: bool = False, scale: float = 1.0) -> Tensor:
    """As the released code of SAGAN and BigGAN: four convolutions, two bmm, a softmax."""
    w_query, w_key, w_value, w_out, gamma = rest

    def project(y: Tensor, weight: Tensor) -> Tensor:
        return TF.conv2d(y, weight.view(*weight.shape[:2], 1, 1))

    query, key, value = (project(x, w) for w in (w_query, w_key, w_value))
    if pool:
        key, value = TF.max_pool2d(key, 2), TF.max_pool2d(value, 2)
    weights = torch.softmax(scale * (query.flatten(2).mT @ key.flatten(2)), -1)
    o = (value.flatten(2) @ weights.mT).reshape(x.shape[0], w_value.shape[0], *x.shape[2:])
    return gamma * project(o, w_out) + x


def results(function: Any, tensors: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """y and the gradients of every tensor."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves, **options)
    vector = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, vector)]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients(impl: str, dtype: torch.dtype, layout: torch.memory_format, size: str) -> None:
    exact, options = make(**SIZES[size])
    tensors = [t.to(dtype) for t in exact]
    tensors[0] = tensors[0].contiguous(memory_format=layout)
    oracle = results(composite, [t.double() for t in tensors], options)
    got = results(F.attention_block, tensors, {**options, "impl": impl})
    # In the norm: the pooling of 16-bit maps may take another position.
    allowed = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 0.03, torch.bfloat16: 0.15}[dtype]
    for value, wanted, like in zip(got, oracle, [tensors[0], *tensors], strict=True):
        assert value.dtype == dtype
        assert value.shape == like.shape
        assert float((value.double() - wanted).norm()) <= allowed * float(wanted.norm())
    assert impl == "reference" or same_layout(got[0], torch.empty_like(tensors[0]))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("pool", [False, True])
def test_derivatives(impl: str, pool: bool) -> None:
    tensors, options = make((1, 3, 4, 2), d=1, dv=2, pool=pool)
    leaves = [t.requires_grad_() for t in tensors]

    def function(*values: Tensor) -> Tensor:
        return F.attention_block(*values, **options, impl=impl)

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_closed_gate_gives_x(impl: str) -> None:
    tensors, options = make((2, 8, 4, 4), d=1, dv=4, gamma=0.0, pool=True)
    values = [t.float() for t in tensors]
    y, *grads = results(F.attention_block, values, {**options, "impl": impl})
    assert torch.equal(y, values[0])
    assert grads[-1].abs() > 0, "the gate gets no gradient and would never open"


@pytest.mark.parametrize("impl", [name for name in IMPLEMENTATIONS if name != "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_closed_gate_gives_the_bits_of_x(impl: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    tensors, options = make((2, 8, 4, 4), d=1, dv=4, gamma=0.0, pool=True)
    x, *rest = (t.to(dtype) for t in tensors)
    x[:, ::2] = -0.0
    rest[3][0] = float("inf")
    x, bits = x.contiguous(memory_format=layout), {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    for arguments in ((x, *rest), (x.requires_grad_(), *rest)):
        y = F.attention_block(*arguments, **options, impl=impl)
        assert torch.equal(y.detach().view(bits), x.detach().view(bits))
        assert y.stride() == x.stride()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated.*")
def test_compiled_is_eager(impl: str) -> None:
    tensors, options = make(**SIZES["pooled"])
    values = [t.float() for t in tensors]
    torch._dynamo.reset()

    def function(*args: Tensor) -> Tensor:
        with gencore.backend(impl):
            return F.attention_block(*args, **options)

    eager = results(function, values, {})
    # The reference is PyTorch's own code, so that it only has to trace.
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager" if impl == "reference" else "inductor")
    for a, b in zip(results(compiled, values, {}), eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["auto", *IMPLEMENTATIONS])
@pytest.mark.parametrize("narrow", [False, True])
def test_follows_autocast(impl: str, narrow: bool) -> None:
    """As from 16-bit tensors, also where a convolution before has made x 16-bit."""
    tensors, options = make((2, 16, 8, 8), d=2, dv=8, pool=True)
    values = [t.float() for t in tensors]
    wanted = results(F.attention_block, [t.bfloat16() for t in values], {**options, "impl": impl})
    if narrow:
        values[0] = values[0].bfloat16()
    forward = torch.autocast("cpu", torch.bfloat16)(F.attention_block)
    got = results(forward, values, {**options, "impl": impl})
    assert got[0].dtype == torch.bfloat16
    for a, b, value in zip(got, wanted, [got[0], *values], strict=True):
        assert a.dtype == value.dtype
        torch.testing.assert_close(a, b.to(a.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_named_implementation_projects_too(dtype: torch.dtype) -> None:
    if "cpu" not in IMPLEMENTATIONS or not EXTENSION.loaded:
        pytest.skip("needs the C++ extension")
    tensors, options = make((2, 16, 8, 8), d=2, dv=8)
    values = [t.to(dtype) for t in tensors]

    def convolutions(impl: str) -> dict[str, int]:
        with torch.profiler.profile() as profile:
            F.attention_block(*values, **options, impl=impl)
        counts = {event.key: event.count for event in profile.key_averages()}
        return {name: counts.get(name, 0) for name in ("gencore::convolution", "aten::conv2d")}

    assert convolutions("cpu") == {"gencore::convolution": 2, "aten::conv2d": 0}
    assert convolutions("reference") == {"gencore::convolution": 0, "aten::conv2d": 4}
    with gencore.backend("cpu"):
        assert convolutions("auto") == {"gencore::convolution": 2, "aten::conv2d": 0}


def bad_inputs() -> list[tuple[str, dict[str, Any]]]:
    return [
        (r"w_value must have shape \[rows > 0, 8\] .* got \(4, 7\)", {"w_value": torch.randn(4, 7)}),
        (r"w_out must have shape \[8, 4\] .* got \(8, 5\)", {"w_out": torch.randn(8, 5)}),
        ("w_query must have shape", {"w_query": torch.randn(2, 8, 3, 3)}),
        ("w_key must have as many rows as w_query, 2", {"w_key": torch.randn(3, 8)}),
        (r"gamma must have shape \(\) or \(1,\), got \(3,\)", {"gamma": torch.ones(3)}),
        (r"w_query must have shape \[rows > 0, 8\] .* got \(0, 8\)", {"w_query": torch.randn(0, 8)}),
        (r"w_value must have shape \[rows > 0, 8\] .* got \(0, 8\)", {"w_value": torch.randn(0, 8)}),
        (r"height and width of 1 at least, got shape \(2, 8, 0, 4\)", {"x": torch.randn(2, 8, 0, 4)}),
        ("x must have 4 dimensions", {"x": torch.randn(2, 8, 16)}),
        ("pool=True needs a height and width of 2", {"x": torch.randn(2, 8, 1, 4), "pool": True}),
        ("w_out must have x's dtype", {"w_out": torch.randn(8, 4).double()}),
        ("gamma is on meta", {"gamma": torch.zeros((), device="meta")}),
    ]


@pytest.mark.parametrize(("message", "arguments"), bad_inputs())
def test_bad_input(message: str, arguments: dict[str, Any]) -> None:
    good = {"x": torch.randn(2, 8, 4, 4), "gamma": torch.zeros(()), "w_out": torch.randn(8, 4)}
    good |= {"w_query": torch.randn(2, 8), "w_key": torch.randn(2, 8), "w_value": torch.randn(4, 8)}
    F.attention_block(**good)
    with pytest.raises(RuntimeError, match=message):
        F.attention_block(**(good | arguments))
    with pytest.raises(TypeError, match="w_key must be a Tensor, got int"):
        F.attention_block(**(good | {"w_key": 3}))
