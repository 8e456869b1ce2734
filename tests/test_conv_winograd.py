"""Convolutions by minimal filtering: what they compute, where they run, and what happens to what is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gencore.functional as G
from gencore.extension import EXTENSION
from gencore.ops import conv_core, conv_packing
from gencore.ops.conv_winograd import STRIDED, STRIDED_LARGE, UNIT, UNIT_INEXACT, UNIT_LARGE
from tests.test_conv import assert_as_good, check_against_float64

pytestmark = pytest.mark.skipif(not EXTENSION.loaded, reason="the C++ extension is not built")

SHAPES = [
    # (function, x, output channels, kernel, arguments)
    ("conv2d", (2, 16, 1, 1), 16, 3, {"padding": 1}),
    ("conv2d", (3, 40, 9, 11), 70, 3, {"padding": 1}),
    ("conv2d", (1, 17, 7, 6), 190, 3, {}),
    ("conv2d", (2, 33, 5, 4), 18, 3, {"padding": (2, 0)}),
    ("conv2d", (2, 16, 3, 20), 16, 3, {"padding": 5}),
    ("conv2d", (9, 20, 13, 13), 16, 3, {"padding": 1}),
    ("conv_transpose2d", (3, 64, 9, 11), 70, 3, {"padding": 1}),
    ("conv_transpose2d", (2, 16, 6, 5), 33, 3, {"padding": (0, 2)}),
    ("conv_transpose2d", (1, 20, 12, 12), 16, 3, {"padding": 4}),
    ("conv2d", (3, 20, 37, 42), 60, 4, {"stride": 2, "padding": 1}),
    ("conv2d", (70, 16, 9, 8), 16, 4, {"stride": 2, "padding": 1}),
    ("conv_transpose2d", (3, 50, 9, 11), 70, 4, {"stride": 2, "padding": 1}),
    ("conv2d", (7, 20, 51, 48), 40, 3, {"stride": 2, "padding": 1}),
    ("conv2d", (9, 16, 54, 41), 16, 3, {"stride": 2}),
    ("conv_transpose2d", (4, 20, 32, 35), 18, 3, {"stride": 2}),
    ("conv_transpose2d", (6, 16, 13, 13), 33, 3, {"stride": 2, "output_padding": 1}),
    ("conv_transpose2d", (2, 17, 16, 15), 18, 4, {"stride": 2, "padding": 1, "output_padding": (1, 0)}),
    ("conv3d", (2, 20, 5, 9, 10), 66, 3, {"padding": 1}),
    ("conv3d", (3, 16, 4, 7, 6), 33, (5, 3, 3), {"stride": (2, 1, 1), "padding": (3, 1, 0)}),
    ("conv3d", (3, 18, 9, 18, 22), 65, 4, {"stride": 2, "padding": 1}),
    ("conv_transpose3d", (2, 18, 5, 9, 8), 66, 4, {"stride": 2, "padding": 1}),
    ("conv_transpose3d", (2, 16, 6, 8, 10), 20, (3, 4, 4), {"stride": (3, 2, 2), "padding": (0, 1, 1)}),
    ("conv_transpose3d", (2, 20, 4, 6, 7), 16, (2, 3, 3), {"stride": (3, 1, 1), "output_padding": (1, 0, 0)}),
    # So many channels that V is made row by row.
    ("conv2d", (4, 520, 11, 9), 33, 3, {"padding": 1}),
    ("conv2d", (1, 240, 34, 20), 70, 4, {"stride": 2, "padding": 1}),
    ("conv2d", (2, 230, 32, 32), 140, 4, {"stride": 2, "padding": 1}),
    ("conv2d", (2, 340, 66, 67), 66, 3, {"stride": 2, "padding": 1}),
    ("conv_transpose2d", (3, 330, 8, 8), 70, 4, {"stride": 2, "padding": 1}),
    ("conv_transpose2d", (3, 140, 9, 11), 70, 4, {"stride": 2, "padding": 1}),
    ("conv_transpose2d", (17, 180, 8, 8), 66, 3, {"stride": 2}),
    ("conv_transpose2d", (4, 170, 16, 16), 130, 3, {"stride": 2, "output_padding": 1}),
    # Enough tiles of 4x4 outputs.
    ("conv2d", (8, 40, 12, 11), 70, 3, {"padding": 1}),
    ("conv2d", (2, 17, 25, 26), 190, 3, {}),
    ("conv2d", (70, 16, 3, 4), 18, 3, {"padding": 1}),
    ("conv2d", (3, 180, 21, 22), 140, 3, {"padding": (0, 2)}),
    ("conv_transpose2d", (5, 64, 15, 16), 70, 3, {"padding": 1}),
    ("conv_transpose2d", (3, 190, 21, 21), 33, 3, {"padding": (0, 2)}),
    ("conv3d", (2, 20, 5, 12, 11), 66, 3, {"padding": 1}),
    ("conv3d", (3, 16, 8, 11, 9), 33, (5, 3, 3), {"stride": (2, 1, 1), "padding": (3, 1, 0)}),
    ("conv_transpose3d", (2, 20, 4, 9, 10), 16, (2, 3, 3), {"stride": (3, 1, 1), "output_padding": (1, 0, 0)}),
]
VOLUMES, WIDE, UNITS_LARGE = range(17, 23), range(23, 31), range(31, 40)


def last_format(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last if t.dim() == 4 else torch.channels_last_3d)


def draw(name: str, shape: tuple[int, ...], out: int, kernel: int | tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    x, bias = torch.randn(shape), torch.randn(out)
    sides = (kernel,) * (len(shape) - 2) if isinstance(kernel, int) else kernel
    channels = (shape[1], out) if "transpose" in name else (out, shape[1])
    return x, torch.randn(*channels, *sides) / (shape[1] * prod(sides)) ** 0.5, bias


def ran() -> bool:
    """Whether any weight that is alive was packed for it."""
    return any(winograd for *_, winograd in conv_packing._packed_weights)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("name", "shape", "out", "kernel", "arguments"), SHAPES)
def test_matches_float64(
    name: str, shape: tuple[int, ...], out: int, kernel: int, arguments: dict[str, Any], channels_last: bool
) -> None:
    x, weight, bias = draw(name, shape, out, kernel)
    if channels_last:
        x, weight = (last_format(t) for t in (x, weight))
    check_against_float64(name, x, weight, bias, **arguments)
    getattr(G, name)(x, weight, bias, **arguments, impl="cpu")
    assert ran()
    if shape in [SHAPES[i][1] for i in UNITS_LARGE]:
        assert schemes(weight) == {UNIT_LARGE}


@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "prelu", "tanh", "sigmoid", "silu"])
@pytest.mark.parametrize(
    ("name", "shape", "out", "kernel", "arguments"),
    [SHAPES[i] for i in (1, 9, 11, 12, 14, 19, 20, 23, 27, 29, 31, 34, 37)],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_epilogue(
    name: str,
    shape: tuple[int, ...],
    out: int,
    kernel: int,
    arguments: dict[str, Any],
    channels_last: bool,
    activation: str,
) -> None:
    x, weight, bias = draw(name, shape, out, kernel)
    if channels_last:
        x = last_format(x)
    residual = torch.randn_like(getattr(F, name)(x, weight, None, **arguments))
    for scale in (torch.rand(out) + 0.5, torch.rand(shape[0], out) + 0.5):
        epilogue = {"scale": scale, "residual": residual, "activation": activation, "slopes": torch.rand(out)}
        ours, wanted = (
            getattr(G, name)(x, weight, bias, **arguments, **epilogue, impl=impl) for impl in ("cpu", "reference")
        )
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    assert ran()


@pytest.fixture
def less_exact() -> Iterator[None]:
    before = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.mkldnn.conv.fp32_precision = "tf32"
    yield
    torch.backends.mkldnn.conv.fp32_precision = before


def schemes(weight: Tensor) -> set[int]:
    """Those that ``weight`` is packed for."""
    return {winograd for owner, *_, winograd in conv_packing._packed_weights if owner == id(weight)}


@pytest.mark.usefixtures("less_exact")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("name", "shape", "out", "arguments", "exact_scheme"),
    [
        ("conv2d", (2, 16, 16, 16), 16, {"padding": 1}, UNIT),
        ("conv2d", (3, 40, 19, 21), 70, {"padding": 1}, UNIT_LARGE),
        ("conv2d", (1, 17, 37, 26), 190, {}, UNIT),
        ("conv2d", (130, 33, 3, 2), 18, {"padding": (1, 2)}, UNIT_LARGE),
        ("conv_transpose2d", (3, 64, 19, 21), 70, {"padding": 1}, UNIT_LARGE),
        ("conv_transpose2d", (2, 16, 26, 25), 33, {"padding": (0, 2)}, UNIT_LARGE),
        ("conv_transpose2d", (1, 20, 32, 32), 16, {"padding": 4}, UNIT),
        ("conv3d", (2, 20, 5, 9, 10), 66, {"padding": 1}, UNIT),
        ("conv_transpose3d", (2, 20, 4, 6, 17), 16, {"stride": (3, 1, 1), "output_padding": (1, 0, 0)}, UNIT_LARGE),
        ("conv2d", (2, 256, 20, 20), 64, {"padding": 1}, UNIT),
    ],
)
def test_fewest_products_where_less_exact_is_allowed(
    name: str, shape: tuple[int, ...], out: int, arguments: dict[str, Any], exact_scheme: int, channels_last: bool
) -> None:
    """With everything of the epilogue, and the input's gradient; far nearer than the ten bits of TF32."""
    x, weight, bias = draw(name, shape, out, 3)
    if channels_last:
        x = last_format(x)
    residual = torch.randn_like(getattr(F, name)(x, weight, None, **arguments))
    epilogue = {"scale": torch.rand(out) + 0.5, "residual": residual, "activation": "leaky_relu"}

    def run(impl: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        given = {key: value.to(dtype) if isinstance(value, Tensor) else value for key, value in epilogue.items()}
        leaf = x.to(dtype).requires_grad_()
        y = getattr(G, name)(leaf, weight.to(dtype), bias.to(dtype), **arguments, **given, impl=impl)
        return y.detach(), torch.autograd.grad(y, leaf, residual.to(dtype))[0]

    for ours, exact in zip(run("cpu", torch.float32), run("reference", torch.float64), strict=True):
        error = (ours.double() - exact).abs()
        assert error.max() < 2**-15 * exact.abs().max()
        assert error.square().mean().sqrt() < 2**-18 * exact.square().mean().sqrt()
    y = getattr(G, name)(x, weight, bias, **arguments, impl="cpu")
    assert schemes(weight) == {UNIT_INEXACT}
    torch.backends.mkldnn.conv.fp32_precision = "ieee"
    assert not torch.equal(y, getattr(G, name)(x, weight, bias, **arguments, impl="cpu"))
    assert schemes(weight) == {exact_scheme, UNIT_INEXACT}


@pytest.mark.usefixtures("less_exact")
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_fewest_products_leave_what_is_not_finite_in_its_place(value: float) -> None:
    x, weight, _ = draw("conv2d", (1, 16, 32, 32), 16, 3)
    x[0, 3, 13, 17] = value
    y, wanted = G.conv2d(x, weight, None, 1, 1, impl="cpu"), F.conv2d(x, weight, None, 1, 1)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert y.isfinite().sum() >= 16 * (32 * 32 - 9)


@pytest.mark.parametrize("strides", ["contiguous", "channels_last", "transposed", "cut out"])
@pytest.mark.parametrize(
    ("name", "shape", "out", "kernel", "arguments"),
    [SHAPES[i] for i in (1, 6, 9, 11, 12, 14, *VOLUMES, *WIDE, *UNITS_LARGE)],
)
def test_weights_of_any_strides(
    name: str, shape: tuple[int, ...], out: int, kernel: int, arguments: dict[str, Any], strides: str
) -> None:
    x, weight, _ = draw(name, shape, out, kernel)
    wanted = getattr(F, name)(x, weight, **arguments)
    if strides == "channels_last":
        weight = last_format(weight)
    elif strides == "transposed":
        weight = weight.mT.contiguous().mT
    elif strides == "cut out":
        weight = F.pad(weight, (1, 0))[..., 1:]
    torch.testing.assert_close(getattr(G, name)(x, weight, **arguments, impl="cpu"), wanted, rtol=1e-5, atol=1e-5)
    assert ran()


@pytest.mark.parametrize(
    ("name", "shape", "out", "kernel", "arguments"),
    [SHAPES[i] for i in (1, 9, 11, 12, 14, 17, 19, 20, *WIDE, 31, 32, *UNITS_LARGE[3:])],
)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_what_is_not_finite_stays_where_it_belongs(
    name: str, shape: tuple[int, ...], out: int, kernel: int, arguments: dict[str, Any], value: float
) -> None:
    """Outputs that share a tile with it get their own values, by direct sums; so do sums that overflow in between."""
    x, weight, _ = draw(name, shape, out, kernel)
    for column, sign in ((2, -1), (4, 1), (6, -1)):
        x[0, 3, ..., 4, column].view(-1)[0] = sign * value
    residual = torch.randn_like(getattr(F, name)(x, weight, **arguments))
    ours, wanted = (
        getattr(G, name)(x, weight, **arguments, residual=residual, activation="relu", impl=impl)
        for impl in ("cpu", "reference")
    )
    assert ran()
    assert torch.equal(ours.isfinite(), wanted.isfinite())
    assert wanted.isfinite().float().mean() > 0.9
    # Terms of 1e38 cancel to some 1e34.
    torch.testing.assert_close(ours, wanted, rtol=1e-2 if value == 3e38 else 1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size", "scheme"),
    [
        (3, 1, 0, (12, 8), UNIT),
        (3, 1, 1, (21, 18), UNIT),
        (3, 1, 0, (24, 21), UNIT_LARGE),
        (3, 1, 1, (23, 20), UNIT_LARGE),
        (3, 1, 2, (24, 21), UNIT_LARGE),
        (3, 2, 0, (21, 18), STRIDED),
        (3, 2, 1, (21, 18), STRIDED),
        (4, 2, 1, (16, 16), STRIDED),
        (4, 2, 1, (21, 18), STRIDED_LARGE),
    ],
)
@pytest.mark.parametrize("channels_last", [(False, False), (True, False), (False, True), (True, True)])
def test_weight_gradient_of_many_parts(
    name: str,
    kernel: int,
    stride: int,
    padding: int,
    size: tuple[int, int],
    scheme: int,
    channels_last: tuple[bool, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More tiles than are transformed at a time, in boxes that do not divide them; both layouts of both tensors."""
    taken: list[int] = []
    fits = conv_core.weight_gradient_scheme
    monkeypatch.setattr(conv_core, "weight_gradient_scheme", lambda *a: taken.append(fits(*a)) or taken[-1])
    channels = (180, 190) if (kernel, stride) == (3, 2) else (61, 62)
    x, weight, _ = draw(name, (23, channels[0], *size), channels[1], kernel)
    arguments = {"stride": stride, "padding": padding}
    grad = torch.randn_like(getattr(F, name)(x, weight, **arguments))
    x, grad = (
        t.contiguous(memory_format=torch.channels_last) if last else t
        for t, last in zip((x, grad), channels_last, strict=True)
    )

    def gradient(function: Any, dtype: torch.dtype = torch.float32, **extra: Any) -> Tensor:
        leaf = weight.to(dtype).requires_grad_()
        return torch.autograd.grad(function(x.to(dtype), leaf, **arguments, **extra), leaf, grad.to(dtype))[0]

    exact, theirs = gradient(getattr(F, name), torch.float64), gradient(getattr(F, name))
    assert_as_good(gradient(getattr(G, name), impl="cpu"), theirs, exact)
    assert taken == [scheme]


@pytest.mark.parametrize(
    ("name", "kernel", "arguments", "scheme"),
    [
        ("conv3d", (3, 3, 3), {"padding": 1}, UNIT_LARGE),
        ("conv3d", (4, 4, 4), {"stride": 2, "padding": 1}, STRIDED_LARGE),
        ("conv3d", (5, 3, 3), {"stride": (3, 1, 1), "padding": (4, 0, 1)}, UNIT),
        ("conv_transpose3d", (4, 4, 4), {"stride": 2, "padding": 1}, STRIDED_LARGE),
        ("conv_transpose3d", (2, 3, 3), {"stride": (3, 1, 1), "padding": (1, 1, 2)}, UNIT_LARGE),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_weight_gradient_of_volumes(
    name: str,
    kernel: tuple[int, ...],
    arguments: dict[str, Any],
    scheme: int,
    channels_last: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []
    fits = conv_core.weight_gradient_scheme
    monkeypatch.setattr(conv_core, "weight_gradient_scheme", lambda *a: taken.append(fits(*a)) or taken[-1])
    x, weight, _ = draw(name, (5, 60, 7, 12, 12), 62, kernel)
    check_against_float64(name, *(map(last_format, (x, weight)) if channels_last else (x, weight)), None, **arguments)
    assert set(taken) == {scheme}


@pytest.mark.parametrize(
    ("name", "shape", "out", "kernel", "arguments"),
    [SHAPES[i] for i in (1, 6, 9, 11, 12, 14, *VOLUMES, *WIDE, *UNITS_LARGE)],
)
def test_bits_do_not_depend_on_threads(
    name: str, shape: tuple[int, ...], out: int, kernel: int, arguments: dict[str, Any]
) -> None:
    x, weight, bias = draw(name, shape, out, kernel)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
            y = getattr(G, name)(*leaves, bias, **arguments, impl="cpu")
            found.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y).cumsum(2))])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found for a, b in zip(other, found[0], strict=True))


def test_refuses_what_it_is_not_for() -> None:
    raw = torch.ops.gencore_c
    x, y = torch.randn(1, 16, 8, 8), torch.empty(1, 16, 8, 8)
    weight = torch.randn(16, 16, 3, 3)
    packed = torch.empty(raw.conv_packed_bytes(weight, 1, True, 1), dtype=torch.uint8)

    def forward(kernel: int, stride: int, padding: int, dilation: int, *moments: Tensor) -> None:
        geometry = (1, [kernel] * 2, [stride] * 2, [padding] * 2, [dilation] * 2, False)
        scheme = UNIT if stride == 1 else STRIDED
        raw.conv_forward(x, packed, None, None, None, None, *geometry, 0, 0.0, scheme, y, *moments)

    for wrong in (torch.randn(16, 16, 5, 5), torch.randn(16, 16, 3, 4), weight.double(), torch.randn(16, 16, 3)):
        with pytest.raises(RuntimeError, match="float32 filters of 3x3"):
            raw.conv_packed_bytes(wrong, 1, True, 1)
    for scheme in (UNIT, UNIT_LARGE, UNIT_INEXACT):
        with pytest.raises(RuntimeError, match="float32 filters of 3x3"):
            raw.conv_packed_bytes(torch.randn(16, 16, 4, 4), 1, True, scheme)
    with pytest.raises(RuntimeError, match="unknown winograd scheme 6"):
        raw.conv_packed_bytes(weight, 1, True, 6)
    with pytest.raises(RuntimeError, match="large tiles take 4x4 or transposed 3x3"):
        raw.conv_packed_bytes(weight, 1, True, STRIDED_LARGE)
    with pytest.raises(RuntimeError, match="has another stride"):
        raw.conv_forward(x, packed, *[None] * 4, 1, [3, 3], [2, 2], [1, 1], [1, 1], False, 0, 0.0, UNIT, y)
    with pytest.raises(RuntimeError, match="without groups and dilation"):
        forward(3, 1, 1, 2)
    with pytest.raises(RuntimeError, match="gathers no statistics"):
        forward(3, 1, 1, 1, torch.empty(16), torch.empty(16))
    with pytest.raises(RuntimeError, match="packed must have"):
        forward(4, 2, 1, 1)
    gathered, dense, result = torch.randn(1, 16, 9, 9), torch.randn(1, 64, 7, 7), torch.empty(64, 16, 3, 3)
    with pytest.raises(RuntimeError, match="and 4x4 at a stride of 2"):
        raw.conv_weight_gradient(dense, gathered, 1, [3, 3], [3, 3], [0, 0], [1, 1], UNIT, result)
    gathered, result = torch.randn(1, 16, 14, 7), torch.empty(64, 16, 8, 1)
    with pytest.raises(RuntimeError, match="and 4x4 at a stride of 2"):
        raw.conv_weight_gradient(dense, gathered, 1, [8, 1], [1, 1], [0, 0], [1, 1], UNIT, result)
    gathered, result = torch.randn(1, 16, 9, 9), torch.empty(64, 16, 3, 3)
    with pytest.raises(RuntimeError, match="have no inexact winograd"):
        raw.conv_weight_gradient(dense, gathered, 1, [3, 3], [1, 1], [0, 0], [1, 1], UNIT_INEXACT, result)
