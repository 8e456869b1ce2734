"""Convolutions along one line by minimal filtering: what they compute, where they run, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gencore.functional as G
from gencore.extension import EXTENSION
from gencore.freezing import freeze
from gencore.nn import ConvTranspose1d
from gencore.ops import conv_packing
from gencore.ops.conv_line import Line
from tests.test_conv import check_against_float64

pytestmark = pytest.mark.skipif(not EXTENSION.loaded, reason="the C++ extension is not built")

SHAPES = [
    # (function, x, output channels, taps, arguments)
    ("conv_transpose1d", (3, 64, 400), 17, 25, {"stride": 4, "padding": 11, "output_padding": 1}),
    ("conv_transpose1d", (2, 70, 600), 33, 11, {"stride": 2, "padding": 4, "output_padding": 1}),
    ("conv_transpose1d", (1, 65, 1100), 18, 48, {"stride": 8, "padding": 20}),
    ("conv_transpose1d", (2, 80, 700), 16, 7, {"padding": 2}),
    ("conv1d", (3, 20, 1603), 40, 25, {"stride": 4, "padding": 11}),
    ("conv1d", (2, 32, 1201), 70, 12, {"stride": 2, "padding": 0}),
    ("conv1d", (1, 16, 9000), 20, 57, {"stride": 8, "padding": 3}),
    ("conv1d", (4, 66, 500), 130, 8, {"padding": 7}),
]
every_shape = pytest.mark.parametrize(("name", "shape", "out", "taps", "arguments"), SHAPES)


def draw(name: str, shape: tuple[int, ...], out: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    channels = (shape[1], out) if "transpose" in name else (out, shape[1])
    return torch.randn(shape), torch.randn(*channels, taps) / (shape[1] * taps) ** 0.5, torch.randn(out)


def ran() -> bool:
    """Whether any weight that is alive was packed for it."""
    return any(isinstance(form, Line) for *_, form, _, _, _ in conv_packing._packed_weights)


@every_shape
def test_matches_float64(name: str, shape: tuple[int, ...], out: int, taps: int, arguments: dict[str, Any]) -> None:
    x, weight, bias = draw(name, shape, out, taps)
    check_against_float64(name, x, weight, bias, **arguments)
    getattr(G, name)(x, weight, bias, **arguments, impl="cpu")
    assert ran()


@every_shape
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "prelu", "tanh", "sigmoid", "silu"])
def test_epilogue(
    name: str, shape: tuple[int, ...], out: int, taps: int, arguments: dict[str, Any], activation: str
) -> None:
    x, weight, bias = draw(name, shape, out, taps)
    epilogue = {"activation": activation, "slopes": torch.rand(out)}
    ours, wanted = (
        getattr(G, name)(x, weight, bias, **arguments, **epilogue, impl=impl) for impl in ("cpu", "reference")
    )
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    assert ran()


@every_shape
def test_other_strides(name: str, shape: tuple[int, ...], out: int, taps: int, arguments: dict[str, Any]) -> None:
    x, weight, _ = draw(name, shape, out, taps)
    wanted = getattr(F, name)(x, weight, **arguments)
    x, weight = x.mT.contiguous().mT, F.pad(weight, (1, 2))[..., 1:-2]
    torch.testing.assert_close(getattr(G, name)(x, weight, **arguments, impl="cpu"), wanted, rtol=1e-5, atol=1e-5)


@every_shape
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_where_it_belongs(
    name: str, shape: tuple[int, ...], out: int, taps: int, arguments: dict[str, Any], value: float
) -> None:
    x, weight, bias = draw(name, shape, out, taps)
    x[0, 3, 150] = value
    ours, wanted = (getattr(G, name)(x, weight, bias, **arguments, impl=impl) for impl in ("cpu", "reference"))
    assert ran()
    assert wanted.isfinite().float().mean() > 0.9
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)


@every_shape
def test_bits_do_not_depend_on_threads(
    name: str, shape: tuple[int, ...], out: int, taps: int, arguments: dict[str, Any]
) -> None:
    x, weight, bias = draw(name, shape, out, taps)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found.append(getattr(G, name)(x, weight, bias, **arguments, impl="cpu"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, found[0]) for other in found)


def test_a_changed_weight_is_packed_again() -> None:
    name, shape, out, taps, arguments = SHAPES[0]
    x, weight, _ = draw(name, shape, out, taps)
    before = G.conv_transpose1d(x, weight, **arguments, impl="cpu")
    weight.data.mul_(2)
    torch.testing.assert_close(G.conv_transpose1d(x, weight, **arguments, impl="cpu"), 2 * before)


def test_a_frozen_layer_gives_the_same() -> None:
    layer = ConvTranspose1d(64, 32, 25, 4, 11, 1)
    x = torch.randn(4, 64, 300)
    with torch.no_grad():
        before = layer(x)
        freeze(layer)
        assert all(torch.equal(layer(x), before) for _ in range(3))


@pytest.mark.parametrize(
    ("channels", "length", "taps", "arguments"),
    [
        ((64, 16), 100, 25, {"stride": 4, "padding": 11, "output_padding": 1}),  # few pixels
        ((63, 16), 400, 25, {"stride": 4, "padding": 11, "output_padding": 1}),  # few terms
        ((64, 15), 400, 25, {"stride": 4, "padding": 11, "output_padding": 1}),  # few channels
        ((64, 16), 400, 25, {"stride": 4, "padding": 11}),  # a length that the stride does not divide
        ((64, 16), 400, 15, {"stride": 3, "padding": 6}),  # a stride that is no power of two
        ((64, 16), 400, 16, {"stride": 4, "padding": 6}),  # few taps
        ((64, 16), 400, 36, {"stride": 4, "padding": 16}),  # nine taps a phase
        ((64, 16), 400, 8, {"padding": 7, "dilation": 2}),
    ],
)
def test_direct_sums_do_the_others(
    channels: tuple[int, int], length: int, taps: int, arguments: dict[str, Any]
) -> None:
    conv_packing._packed_weights.clear()
    x, weight = torch.randn(4, channels[0], length), torch.randn(*channels, taps)
    ours, wanted = (G.conv_transpose1d(x, weight, **arguments, impl=impl) for impl in ("cpu", "reference"))
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    assert not ran()


def test_refuses_what_it_is_not_for() -> None:
    raw = torch.ops.gencore_c
    weight, x, y = torch.randn(32, 16, 8, 1), torch.randn(2, 16, 40), torch.empty(2, 8, 160)
    packed = torch.empty(raw.conv_packed_bytes(weight, 1, True, 1), dtype=torch.uint8)
    raw.conv_pack(weight, 1, True, 1, packed)

    def run(
        x: Tensor = x,
        packed: Tensor = packed,
        bias: Tensor | None = None,
        padding: int = 3,
        phases: tuple[int, int] = (1, 4),
        activation: int = 0,
        y: Tensor = y,
    ) -> bool:
        return raw.conv_line_forward(x, packed, bias, None, padding, *phases, activation, 0.0, y)

    assert run()
    wanted = F.conv1d(F.pad(x, (3, 4)), weight[..., 0]).unflatten(1, (8, 4)).mT.flatten(2)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    for match, wrong in (
        ("phases must be 1, 2, 4 or 8, got 3", {"phases": (1, 3)}),
        ("phases must be 1, 2, 4 or 8, got 16", {"phases": (16, 1)}),
        ("divisible by its phases", {"y": torch.empty(2, 8, 161)}),
        ("must have 3 dimensions", {"x": x[..., None]}),
        ("x has the wrong dtype", {"x": x.double()}),
        ("x must be contiguous", {"x": x.mT.contiguous().mT}),
        ("differ in batch size", {"x": x[:1]}),
        ("is empty or too long", {"x": x[:, :, :0]}),
        ("padding must be from 0 to 7, got 8", {"padding": 8}),
        ("packed must have", {"packed": packed[:-64]}),
        ("bias must have 32 elements", {"bias": torch.randn(8)}),
        ("prelu needs slopes", {"activation": 6}),
        ("unknown activation", {"activation": 7}),
    ):
        with pytest.raises(RuntimeError, match=match):
            run(**wrong)
    for args in ((weight[..., :7, :], 1, True, 1), (weight, 1, False, 1), (weight, 1, True, 2)):
        with pytest.raises(RuntimeError, match="of 8x1 at 1"):
            raw.conv_packed_bytes(*args)
