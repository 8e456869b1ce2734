"""The kernel that differentiates a norm's gradient, beside PyTorch's own derivative of the same formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as TF

from gencore import functional as F
from gencore.extension import EXTENSION
from gencore.ops import norm_core
from tests.accuracy import error

pytestmark = pytest.mark.skipif(not EXTENSION.loaded, reason="the C++ extension is not built")

# Planes, rows in channels_last, short planes that are folded, more samples than a chunk has rows.
SHAPES = [(4, 5, 6, 7), (3, 37, 16, 17), (2, 16, 9, 9), (40, 20, 4, 4), (300, 3)]


def gradients(name: str, shape: tuple[int, ...], layout: str, activation: str, affine: bool, dtype: torch.dtype) -> Any:
    """Of x, grad_y and weight, for random cotangents of all that the backward returns."""
    generator = torch.Generator().manual_seed(5)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    x, grad_y = draw(*shape) + 0.5, draw(*shape).requires_grad_()
    if layout == "channels_last" and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    size = shape[:2] if name == "conditional_batch_norm" else shape[1:2]
    parameters = [draw(*size).requires_grad_() for _ in range(2)] if affine else [None, None]
    options: dict[str, Any] = {"activation": activation, "negative_slope": 0.2, "impl": "cpu"}
    if name != "instance_norm_act":
        options["training"] = True
    y = getattr(F, name)(x, *parameters, **options)
    wanted = [x, *(p for p in parameters if p is not None)]
    grads = torch.autograd.grad(y, wanted, grad_y, create_graph=True)
    cotangents = [draw(*g.shape) for g in grads]
    return torch.autograd.grad(grads, [x, grad_y, *wanted[1:2]], cotangents)


CASES = [
    (name, affine, shape)
    for name, affine in (
        ("batch_norm_act", True),
        ("batch_norm_act", False),
        ("conditional_batch_norm", True),
        ("instance_norm_act", True),
        ("instance_norm_act", False),
    )
    for shape in SHAPES
    if name != "instance_norm_act" or len(shape) > 2  # a single number has no statistics
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("name", "affine", "shape"), CASES, ids=str)
def test_agrees_with_the_formula(monkeypatch, name, affine, shape, layout):
    for activation in ("identity", "relu", "leaky_relu"):
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4), (torch.bfloat16, 0.05)):
            arguments = (name, shape, layout, activation, affine, dtype)
            ours = gradients(*arguments)
            with monkeypatch.context() as patch:
                patch.setattr(norm_core, "has_kernel", lambda *args: False)
                formula = gradients(*arguments)
            for mine, theirs in zip(ours, formula, strict=True):
                scale = theirs.double().square().mean().sqrt()
                assert (mine.double() - theirs.double()).abs().max() <= tolerance * scale * 10, (activation, dtype)


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("shape", [(16, 64, 16, 16), (4, 32, 8, 8)], ids=str)
def test_errs_no_more_than_twice_as_much_as_pytorch(shape, shift):
    def second(ours: bool, dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(2)

        def draw(*size: int) -> Tensor:
            return (torch.randn(size, generator=generator) + shift).to(dtype).requires_grad_()

        x, weight, bias, grad_y = draw(*shape), draw(shape[1]), draw(shape[1]), draw(*shape)
        if ours:
            y = F.batch_norm_act(x, weight, bias, training=True, activation="relu", impl="cpu")
        else:
            y = TF.relu(TF.batch_norm(x, None, None, weight, bias, True))
        (grad_x,) = torch.autograd.grad(y, x, grad_y, create_graph=True)
        return torch.autograd.grad(grad_x, (grad_y, x, weight), draw(*shape))

    oracle = second(False, torch.float64)
    for mine, theirs, exact in zip(second(True, torch.float32), second(False, torch.float32), oracle, strict=True):
        assert error(mine, exact) <= max(2 * error(theirs, exact), 1e-6)


def test_the_kernel_runs_only_where_it_is_the_derivative(monkeypatch):
    """A third derivative, a residual, and an activation that is curved take the formula, and are those of plain PyTorch
    (whose own batch norm is a third time differentiated wrongly)."""
    calls = []
    kernel = norm_core.double_backward
    monkeypatch.setattr(norm_core, "double_backward", lambda *args: calls.append(1) or kernel(*args))

    def plain(x: Tensor, activation: str, residual: Tensor | None = None) -> Tensor:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        y = (x - mean) * (var + 1e-5).rsqrt() + (0.0 if residual is None else residual)
        return {"identity": torch.clone, "relu": TF.relu, "silu": TF.silu}[activation](y)

    def derivative(order: int, ours: bool, **options: Any) -> Tensor:
        torch.manual_seed(0)
        x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
        y = F.batch_norm_act(x, training=True, impl="cpu", **options) if ours else plain(x, **options)
        value = y.pow(3).sum()
        for left in reversed(range(order)):
            (value,) = torch.autograd.grad(
                value if value.dim() == 0 else value.square().sum(), x, create_graph=left > 0
            )
        return value

    residual = torch.ones(3, 4, 5, 5, dtype=torch.float64)
    for served, options in (
        (True, {"activation": "identity"}),
        (True, {"activation": "relu"}),
        (False, {"activation": "silu"}),
        (False, {"activation": "relu", "residual": residual}),
    ):
        calls.clear()
        torch.testing.assert_close(derivative(2, True, **options), derivative(2, False, **options))
        assert bool(calls) is served, options
        torch.testing.assert_close(derivative(3, True, **options), derivative(3, False, **options))
