"""The convolution kernels against PyTorch, over the geometries that phases and tables of taps must get right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gencore.kernels import conv as kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gencore import functional as F
from gencore import reference
from tests.accuracy import Comparison, assert_accurate
from tests.opspec import call, cotangents, leaves, prepare
from tests.specs import SPECS

CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ("conv2d", (2, 5, 7, 6), (9, 5, 3, 3), {"padding": 1, "activation": "leaky_relu"}),
    "4x4 stride 2": ("conv2d", (2, 3, 8, 9), (4, 3, 4, 4), {"stride": 2, "padding": 1, "activation": "relu"}),
    "1x1": ("conv2d", (3, 33, 4, 5), (35, 33, 1, 1), {}),
    "asymmetric": ("conv2d", (1, 4, 9, 7), (6, 4, 3, 2), {"stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)}),
    "groups": ("conv2d", (2, 6, 5, 5), (8, 3, 3, 3), {"groups": 2, "padding": 1, "activation": "silu"}),
    "depthwise": ("conv2d", (2, 5, 6, 4), (5, 1, 3, 3), {"groups": 5, "padding": 2}),
    "1-d": ("conv1d", (2, 3, 40), (5, 3, 25), {"stride": 4, "padding": 11, "activation": "tanh"}),
    "3-d": ("conv3d", (1, 2, 4, 5, 3), (3, 2, 2, 3, 3), {"padding": 1, "activation": "sigmoid"}),
    "transposed 4x4 stride 2": ("conv_transpose2d", (2, 5, 3, 4), (5, 7, 4, 4), {"stride": 2, "padding": 1}),
    "transposed 5x5": ("conv_transpose2d", (1, 3, 4, 3), (3, 4, 5, 5), {"stride": 2, "padding": 2, "output_padding": 1}),  # noqa: E501
    "transposed, no tap": ("conv_transpose2d", (1, 2, 3, 3), (2, 3, 1, 2), {"stride": 3, "activation": "relu"}),
    "transposed, dilated": ("conv_transpose2d", (1, 4, 4, 3), (4, 2, 3, 3), {"stride": 2, "dilation": 3, "groups": 2}),
    "transposed 1-d": ("conv_transpose1d", (2, 3, 7), (3, 4, 6), {"stride": 4, "padding": 1, "output_padding": 2}),
    "transposed 3-d": ("conv_transpose3d", (1, 3, 2, 3, 2), (3, 2, 4, 4, 4), {"stride": 2, "padding": 1}),
    "one pixel": ("conv_transpose2d", (4, 20, 1, 1), (20, 3, 4, 4), {}),
}  # fmt: skip


RESULTS = ("y", "grad_x", "grad_weight", "grad_bias")


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case: str, channels_last: bool) -> None:
    name, x_shape, w_shape, options = CASES[case]
    x, weight = _draw(*x_shape), _draw(*w_shape)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    out = w_shape[1] * options.get("groups", 1) if "transpose" in name else w_shape[0]
    tensors = (x, weight, _draw(out))

    def compare(seed: int) -> list[Comparison]:
        y = _run(name, tensors, options, "reference", torch.float64)[0]
        grad = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        exact = _run(name, tensors, options, "reference", torch.float64, grad)
        theirs = _run(name, tensors, options, "reference", torch.float32, grad)
        ours = _run(name, tensors, options, "triton", torch.float32, grad)
        return [Comparison(*c) for c in zip(RESULTS, ours, theirs, exact, strict=True)]

    assert_accurate(compare(0), lambda: map(compare, range(1, 8)))
    ours = _run(name, tensors, options, "triton", torch.float32)
    last = channels_last and not tensors[0].is_contiguous()  # one pixel is both
    assert (ours[0].movedim(1, -1) if last else ours[0]).is_contiguous()


def _run(
    name: str, tensors: tuple[Tensor, ...], options: dict[str, Any], impl: str, dtype: torch.dtype, grad: Any = None
) -> list[Tensor]:
    leaves = [t.to(dtype).requires_grad_() for t in tensors]
    y = getattr(F, name)(*leaves, **options, impl=impl)
    return [y] if grad is None else [y, *torch.autograd.grad(y, leaves, grad.to(dtype))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_residual_prelu_and_half_precision(dtype: torch.dtype) -> None:
    x, weight, bias = _draw(2, 6, 5, 5).to(dtype), _draw(7, 6, 3, 3).to(dtype), _draw(7).to(dtype)
    residual, slopes = _draw(2, 7, 5, 5).to(dtype), _draw(7).to(dtype)
    options = {"padding": 1, "residual": residual, "slopes": slopes, "activation": "prelu"}
    y = F.conv2d(x, weight, bias, **options, impl="triton")
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    exact = reference.convolution(x.double(), weight.double(), bias.double(), **wide)  # type: ignore[arg-type]
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_linear_and_its_second_derivative() -> None:
    x, weight = _draw(5, 3, 19).float().requires_grad_(), _draw(21, 19).float().requires_grad_()
    results = []
    for impl in ("triton", "reference"):
        y = F.linear(x, weight, activation="tanh", impl=impl)
        grad_x, grad_w = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
        second = torch.autograd.grad(grad_x.square().sum() + grad_w.square().sum(), (x, weight))
        results.append((y, grad_x, grad_w, *second))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


def test_an_empty_batch_and_foreign_strides() -> None:
    weight = _draw(4, 3, 3, 3).float()
    assert F.conv2d(torch.zeros(0, 3, 5, 5), weight, impl="triton").shape == (0, 4, 3, 3)
    x = _draw(2, 3, 9, 16).float().transpose(2, 3)[:, :, ::2]
    torch.testing.assert_close(F.conv2d(x, weight, impl="triton"), torch.nn.functional.conv2d(x, weight))


@pytest.mark.parametrize("name", ["conv1d", "conv3d", "conv_transpose1d", "conv_transpose3d"])
@settings(max_examples=3)
@given(st.data())
def test_drawn_in_one_and_three_dimensions(name: str, data: st.DataObject) -> None:
    """The generic tests run in two."""
    spec = next(s for s in SPECS if s.name == name)
    sample = data.draw(spec.shapes)
    results = []
    for impl in ("triton", "reference"):
        tensors = prepare(spec, sample, torch.float32)
        (y,) = call(spec, tensors, sample.options, None, impl)
        results.append([y, *torch.autograd.grad(y, list(leaves(spec, tensors).values()), cotangents((y,)))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_views_whose_offsets_need_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few elements, far apart: of the input, the residual and both operands of a weight gradient.

    What the launches say is enough to know: the check of memory keeps a record of every byte between the first element
    and the last.
    """
    wide: list[bool] = []

    class Launched:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, LONG, **kwargs: wide.append(LONG)

    monkeypatch.setattr(kernels, "_convolve", Launched())
    monkeypatch.setattr(kernels, "_weight_gradient", Launched())

    def spread(*shape: int) -> Tensor:
        base = torch.empty(2, shape[1], 24_000, 24_000, dtype=torch.float16)  # what is not written takes no memory
        view = base[:, :, :: 24_000 // shape[2], :: 24_000 // shape[3]]
        assert sum((n - 1) * stride for n, stride in zip(view.shape, view.stride(), strict=True)) > 2**31
        return view

    x, weight, residual = spread(2, 3, 5, 4), _draw(3, 3, 3, 3).half(), spread(2, 3, 3, 2)
    near = [torch.zeros(t.shape, dtype=t.dtype) for t in (x, residual)]
    for image, other in ((x, near[1]), (near[0], residual), (near[0], near[1])):
        F.conv2d(image, weight, residual=other, impl="triton")
    assert wide == [True, True, False]
    wide.clear()
    geometry = ([3, 3], [1, 1], [0, 0], [1, 1], 1, "triton")
    for dense, gathered in ((residual, near[0]), (near[1], x), (near[1], near[0])):
        torch.ops.gencore.convolution_weight_gradient(dense, gathered, *geometry)
    assert wide == [True, True, False]


def test_wide_offsets_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = (_draw(*s).float().requires_grad_() for s in ((2, 4, 5, 3), (4, 6, 3, 3), (6,)))
    runs = []
    for wide in (False, True):
        monkeypatch.setattr(kernels, "needs_64_bits", lambda *tensors, wide=wide: wide)
        y = F.conv_transpose2d(x, weight, bias, 2, residual=torch.ones(2, 6, 11, 7), activation="tanh", impl="triton")
        runs.append([y, *torch.autograd.grad(y.square().sum(), (x, weight, bias))])
    for ours, wider in zip(*runs, strict=True):
        assert torch.equal(ours, wider)
