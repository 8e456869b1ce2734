"""Convolutions against float64, over arguments, layouts, dtypes and orders of differentiation."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gencore.functional as G
import gencore.nn
from gencore import UnsupportedImplementation, explain
from gencore.extension import EXTENSION
from gencore.ops import conv_core, conv_packing
from tests.accuracy import Comparison, assert_accurate

pytestmark = pytest.mark.skipif(not EXTENSION.loaded, reason="the C++ extension is not built")

NAMES = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
FORMATS = {1: None, 2: torch.channels_last, 3: torch.channels_last_3d}


def make(name: str, x_shape, w_shape, dtype=torch.float32, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = w_shape[1] if "transpose" in name else w_shape[0]
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return draw(*x_shape), draw(*w_shape), draw(channels) if bias else None


def all_gradients(function, tensors, grad):
    leaves = [None if t is None else t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
    leaves = [None if t is None else t.requires_grad_() for t in leaves]
    y = function(*leaves)
    wanted = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, grad.to(y.dtype))]


def assert_as_good(ours, theirs, exact, what="result") -> None:
    """At most twice PyTorch's error, give or take a few units of the largest number's rounding.

    In float64 the oracle is PyTorch's result itself, and what remains is the rounding of both.
    """
    error, reference = (ours.double() - exact).abs().max(), (theirs.double() - exact).abs().max()
    units = {torch.float64: 200, torch.float32: 4}.get(ours.dtype, 1)
    room = units * torch.finfo(ours.dtype).eps * exact.abs().max()
    assert error <= 2 * reference + room, f"{what}: error {error:.3g}, PyTorch's {reference:.3g}, room {room:.3g}"


def check_against_float64(name: str, x, weight, bias, **arguments) -> None:
    """Result and gradients under the accuracy rule, for a call and, where that breaks it, its neighbours."""

    def moved(t, generator):
        return None if t is None else t * (1 + 0.01 * torch.rand(t.shape, generator=generator)).to(t.dtype)

    def neighbours():
        generator = torch.Generator().manual_seed(0)
        return (_compare(name, *(moved(t, generator) for t in (x, weight, bias)), arguments) for _ in range(15))

    assert_accurate(_compare(name, x, weight, bias, arguments), neighbours)


def _compare(name: str, x, weight, bias, arguments) -> list[Comparison]:
    function, oracle = getattr(G, name), getattr(F, name)
    exact_y = oracle(x.double(), weight.double(), None if bias is None else bias.double(), **arguments)
    grad = torch.randn(exact_y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x.dtype)
    tensors = (x, weight, bias)
    exact = all_gradients(
        lambda x, w, b: oracle(x, w, b, **arguments), [None if t is None else t.double() for t in tensors], grad
    )
    theirs = all_gradients(lambda x, w, b: oracle(x, w, b, **arguments), tensors, grad)
    ours = all_gradients(lambda x, w, b: function(x, w, b, **arguments, impl="cpu"), tensors, grad)
    found = [
        Comparison(what, o, t, e)
        for what, e, t, o in zip(("y", "x.grad", "weight.grad", "bias.grad"), exact, theirs, ours, strict=False)
    ]
    assert all(c.value.dtype == x.dtype for c in found)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("name", "x", "w", "arguments"),
    [
        ("conv2d", (3, 16, 9, 11), (40, 16, 3, 3), {"padding": 1}),
        ("conv2d", (2, 70, 8, 8), (130, 70, 4, 4), {"stride": 2, "padding": 1}),
        ("conv2d", (2, 3, 17, 15), (24, 3, 5, 5), {"stride": 2, "padding": 2, "bias": False}),
        ("conv2d", (2, 12, 7, 7), (18, 4, 3, 3), {"groups": 3, "dilation": 2, "padding": 2}),
        ("conv2d", (2, 8, 6, 6), (8, 1, 3, 3), {"groups": 8, "padding": 1}),
        ("conv2d", (5, 33, 1, 1), (17, 33, 1, 1), {}),
        ("conv_transpose2d", (3, 40, 5, 6), (40, 33, 4, 4), {"stride": 2, "padding": 1}),
        ("conv_transpose2d", (7, 20, 1, 1), (20, 64, 4, 4), {}),
        ("conv_transpose2d", (2, 32, 8, 8), (32, 3, 4, 4), {"stride": 2, "padding": 1}),
        (
            "conv_transpose2d",
            (2, 12, 5, 4),
            (12, 5, 5, 3),
            {"stride": (3, 2), "padding": (2, 1), "output_padding": (2, 1), "groups": 2, "dilation": (1, 2)},
        ),
        ("conv1d", (3, 20, 50), (30, 20, 25), {"stride": 4, "padding": 11}),
        ("conv_transpose1d", (3, 30, 12), (30, 20, 25), {"stride": 4, "padding": 11, "output_padding": 1}),
        ("conv3d", (2, 5, 6, 7, 5), (18, 5, 3, 3, 3), {"padding": 1, "stride": (1, 2, 1)}),
        ("conv_transpose3d", (2, 18, 3, 4, 2), (18, 20, 4, 4, 4), {"stride": 2, "padding": 1}),
    ],
)
def test_matches_float64(name, x, w, arguments, channels_last, dtype):
    arguments = dict(arguments)
    bias = arguments.pop("bias", True)
    groups = arguments.get("groups", 1)
    channels = w[1] * groups if "transpose" in name else w[0]
    tensors = make(name, x, w, dtype, bias=False)
    bias = torch.randn(channels, generator=torch.Generator().manual_seed(2)).to(dtype) if bias else None
    if channels_last and FORMATS[len(x) - 2]:
        tensors = (tensors[0].contiguous(memory_format=FORMATS[len(x) - 2]), *tensors[1:])
    check_against_float64(name, tensors[0], tensors[1], bias, **arguments)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=100)
@given(st.data())
def test_matches_float64_for_any_arguments(data):
    draw = data.draw
    dims, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    name = f"conv{'_transpose' * transposed}{dims}d"
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inner, outer = draw(st.sampled_from([1, 2, 7, 16, 33])), draw(st.sampled_from([1, 3, 16, 18, 66]))
    each = lambda least, most: tuple(draw(st.integers(least, most)) for _ in range(dims))  # noqa: E731
    size, kernel, stride, dilation, padding = each(1, 9), each(1, 4), each(1, 3), each(1, 2), each(0, 2)
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if not transposed and draw(st.integers(0, 4)) == 0:
        arguments["padding"] = draw(st.sampled_from(["same", "valid"]))
        if arguments["padding"] == "same":
            arguments["stride"] = 1
    if transposed:
        arguments["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
    w_shape = (inner * groups, outer, *kernel) if transposed else (outer * groups, inner, *kernel)
    x, weight, _ = make(name, (draw(st.integers(1, 7)), inner * groups, *size), w_shape, bias=False)
    if draw(st.integers(0, 4)) == 0:
        x = x[0]
    try:
        getattr(F, name)(x.double(), weight.double(), **arguments)  # float32 lets some empty results pass
    except RuntimeError:
        with pytest.raises(RuntimeError):
            getattr(G, name)(x, weight, **arguments, impl="cpu")
        assume(False)
    if FORMATS[dims] and x.dim() == dims + 2 and draw(st.booleans()):
        x = x.contiguous(memory_format=FORMATS[dims])
    # Not from the default generator, which stands elsewhere when hypothesis repeats an example.
    bias = make(name, (1,), (1, outer * groups), bias=False)[1][0] if draw(st.booleans()) else None
    check_against_float64(name, x, weight, bias, **arguments)
    activation = draw(st.sampled_from(["identity", "relu", "leaky_relu", "prelu"]))
    slopes = make(name, (1,), (1, outer * groups), bias=False)[1][0].sigmoid()
    tensors = [x, weight, bias, slopes]

    def run(tensors, impl):
        epilogue = {"activation": activation, "negative_slope": 0.2, "slopes": tensors[3], "impl": impl}
        return getattr(G, name)(*tensors[:3], **arguments, **epilogue)

    exact = run([None if t is None else t.double() for t in tensors], "reference")
    assert_as_good(run(tensors, "cpu"), run(tensors, "reference"), exact, activation)


def test_transposed_convolution_worked_example():
    """4x4 ones through a 3x3 filter of ones: the outer product of 1 2 3 3 2 1 with itself."""
    y = G.conv_transpose2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3), impl="cpu")
    ramp = torch.tensor([1.0, 2, 3, 3, 2, 1])
    assert torch.equal(y[0, 0], torch.outer(ramp, ramp))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(4, 16, 700), (4, 16, 300_000), (1, 17, 9, 3), (4, 16, 40, 3), (2, 16, 5, 4, 3)])
def test_to_few_channels(shape, channels):
    """Bands of the output with their sums in a buffer; rows that are too long for it; all of the epilogue."""
    name = f"conv_transpose{len(shape) - 2}d"
    x, weight, bias = make(name, shape, (shape[1], channels, *[5] * (len(shape) - 2)))
    arguments = {"stride": 2, "padding": 1, "output_padding": 1}
    wanted = getattr(F, name)(x, weight, **arguments)
    residual, scale = torch.randn_like(wanted), torch.rand(shape[0], channels) + 0.5
    per_channel = [shape[0], channels, *[1] * (len(shape) - 2)]
    wanted = F.leaky_relu(wanted * scale.view(per_channel) + bias.view([1, *per_channel[1:]]) + residual)
    for to in (lambda t: t, lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1)):
        epilogue = {"scale": scale, "residual": to(residual), "activation": "leaky_relu"}
        y = getattr(G, name)(to(x), weight, bias, **arguments, **epilogue, impl="cpu")
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("channels", "size", "out", "kernel", "arguments"),
    [
        (3, (37, 40), 64, (4, 4), {"stride": 2, "padding": 1}),
        (1, (9, 3), 70, (3, 7), {"padding": (8, 9)}),
        (2, (5, 70), 17, (2, 3), {"stride": (1, 5), "padding": (1, 0)}),
        (4, (30, 31), 5, (7, 7), {"stride": 3, "padding": 3}),
        (3, (500,), 20, (25,), {"stride": 4, "padding": 11}),
        (3, (6, 9, 8), 33, (3, 4, 2), {"padding": (1, 2, 3), "dilation": (2, 1, 1)}),
    ],
)
def test_from_few_channels(channels, size, out, kernel, arguments, dtype, channels_last):
    """The taps of a filter row are one run of numbers, with padding on both sides, or with nothing else."""
    name = f"conv{len(size)}d"
    x, w, bias = make(name, (3, channels, *size), (out, channels, *kernel), dtype)
    if channels_last and FORMATS[len(size)] is not None:
        x = x.contiguous(memory_format=FORMATS[len(size)])
    check_against_float64(name, x, w, bias, **arguments)


def test_same_and_valid_padding():
    x, weight, bias = make("conv2d", (2, 4, 9, 8), (6, 4, 4, 3))
    for padding, dilation in itertools.product(("same", "valid"), (1, 2)):
        ours = G.conv2d(x, weight, bias, padding=padding, dilation=dilation, impl="cpu")
        torch.testing.assert_close(ours, F.conv2d(x, weight, bias, padding=padding, dilation=dilation))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "prelu", "tanh", "sigmoid", "silu"])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_epilogue(name, activation, with_gradient, dtype):
    x, weight, bias = make(name, (2, 24, 6, 5), (24, 24, 3, 3), dtype)
    torch.manual_seed(0)
    weight *= 0.07  # sums of about 1, where no activation is saturated
    residual, slopes = torch.randn_like(getattr(F, name)(x, weight)), torch.rand(24, dtype=dtype)
    arguments = {"activation": activation, "negative_slope": 0.2}
    tensors = [x, weight, bias, residual, slopes]

    def run(tensors, impl):
        x, weight, bias, residual, slopes = tensors
        return getattr(G, name)(x, weight, bias, residual=residual, slopes=slopes, **arguments, impl=impl)

    wide = [t.double() for t in tensors]
    if not with_gradient:
        for channels_last in (False, True):
            first = x.contiguous(memory_format=torch.channels_last) if channels_last else x
            y, exact = run([first, *tensors[1:]], "cpu"), run(wide, "reference")
            assert_as_good(y, run(tensors, "reference"), exact)
            assert y.is_contiguous(memory_format=torch.channels_last) == channels_last
        return
    used = tensors if activation == "prelu" else tensors[:4]
    coefficients = torch.randn_like(residual)

    def gradients(tensors, impl):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        y = run([*leaves, slopes.to(leaves[0].dtype)][:5], impl)
        return torch.autograd.grad((y * coefficients.to(y.dtype)).sum(), leaves)

    exact = gradients([t.double() for t in used], "reference")
    for e, t, o in zip(exact, gradients(used, "reference"), gradients(used, "cpu"), strict=True):
        assert_as_good(o, t, e)


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "tanh", "silu", "prelu"])
@pytest.mark.parametrize(
    ("name", "x", "w", "arguments"),
    [
        ("conv2d", (2, 2, 4, 3), (2, 1, 3, 2), {"stride": (2, 1), "padding": 1, "groups": 2}),
        ("conv_transpose2d", (1, 4, 3, 2), (4, 1, 3, 2), {"stride": 2, "padding": 1, "groups": 2, "output_padding": 1}),
        ("conv1d", (2, 3, 7), (2, 3, 3), {"dilation": 2}),
        ("conv_transpose3d", (1, 2, 2, 2, 1), (2, 2, 2, 2, 2), {"stride": 2}),
    ],
)
def test_first_and_second_derivatives(name, x, w, arguments, activation):
    groups = arguments.get("groups", 1)
    channels = w[1] * groups if "transpose" in name else w[0]
    x, weight, _ = make(name, x, w, torch.float64)
    bias, slopes = torch.randn(channels, dtype=torch.float64), torch.rand(channels, dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (x, weight, bias)]
    extra = {"slopes": slopes} if activation == "prelu" else {}

    def function(x, weight, bias):
        epilogue = {"activation": activation, "negative_slope": 0.3, **extra}
        return getattr(G, name)(x, weight, bias, **arguments, **epilogue, impl="cpu")

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_ops_are_registered_well():
    x, weight, bias = make("conv2d", (2, 4, 5, 5), (6, 4, 3, 3))
    residual, scale = torch.randn(2, 6, 5, 5), torch.rand(2, 6)
    geometry = ([1, 1], [1, 1], [1, 1])
    tensors = [t.requires_grad_() for t in (x, weight, bias, residual)]
    for activation in ("identity", "tanh"):
        arguments = (*tensors, None, scale, *geometry, [5, 5], 1, False, activation, 0.0, "cpu")
        torch.library.opcheck(torch.ops.gencore.convolution.default, arguments)
        for with_gradient in (torch.rand(6), torch.rand(())):
            arguments = (*arguments[:5], with_gradient.requires_grad_(), *arguments[6:])
            torch.library.opcheck(torch.ops.gencore.convolution.default, arguments)
    with pytest.raises(RuntimeError, match="no gradients to slopes and to a scale for each sample"):
        conv_core.CONVOLUTION(*arguments[:5], scale.requires_grad_(), *arguments[6:])
    torch.library.opcheck(
        torch.ops.gencore.convolution_weight_gradient.default, (residual, x, [3, 3], *geometry, 1, "cpu")
    )


def test_compiles_without_graph_breaks():
    x, weight, bias = make("conv2d", (2, 4, 6, 6), (8, 4, 3, 3))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x, weight, bias):
        return G.conv2d(x, weight, bias, 2, 1, activation="relu", impl="cpu")

    ours = all_gradients(function, (x, weight, bias), torch.ones(2, 8, 3, 3))
    eager = all_gradients(lambda *t: F.relu(F.conv2d(*t, 2, 1)), (x, weight, bias), torch.ones(2, 8, 3, 3))
    torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_any_strides(name):
    x, weight, bias = make(name, (4, 6, 7, 8), (6, 6, 3, 3))
    expected = getattr(F, name)(x, weight, bias)
    for view in (
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([x, x], 1)[:, :6],
        torch.stack([x, x], -1)[..., 0],
        x.contiguous(memory_format=torch.channels_last),
    ):
        for w in (weight, weight.contiguous(memory_format=torch.channels_last), weight.mT.contiguous().mT):
            torch.testing.assert_close(getattr(G, name)(view, w, bias, impl="cpu"), expected, rtol=1e-4, atol=1e-4)
    flat = x[:1].expand(4, -1, -1, -1)
    torch.testing.assert_close(
        getattr(G, name)(flat, weight, bias, impl="cpu"), getattr(F, name)(flat, weight, bias), rtol=1e-4, atol=1e-4
    )


def test_empty_batch_and_missing_batch():
    _, weight, bias = make("conv2d", (1, 6, 5, 5), (4, 6, 3, 3))
    empty = torch.randn(0, 6, 5, 5, requires_grad=True)
    y = G.conv2d(empty, weight.requires_grad_(), bias, impl="cpu")
    assert y.shape == (0, 4, 3, 3)
    y.sum().backward()
    assert empty.grad.shape == empty.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    one = torch.randn(6, 5, 5)
    torch.testing.assert_close(G.conv2d(one, weight, bias, impl="cpu"), F.conv2d(one, weight, bias))


def test_results_do_not_depend_on_threads_or_runs():
    x, weight, bias = make("conv_transpose2d", (9, 24, 7, 7), (24, 40, 4, 4))

    def run():
        grad = torch.ones(9, 40, 14, 14).cumsum(2)
        return all_gradients(lambda *t: G.conv_transpose2d(*t, 2, 1, impl="cpu"), (x, weight, bias), grad)

    first = run()
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            # The bias gradient is PyTorch's sum.
            for a, b in zip(first[:3], run()[:3], strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("channels", [8, 128])
def test_packed_weights_follow_every_change(channels):
    """Changes of all signs or exponents too, which a weak hash of many equal blocks misses."""
    x, weight, _ = make("conv2d", (1, channels, 6, 6), (channels, channels, 3, 3))
    for change in (
        lambda: weight.add_(1),
        lambda: weight.data.mul_(0.5),  # leaves the version counter alone
        lambda: weight.data.neg_(),
        lambda: weight.data.mul_(4),
        lambda: weight.data.view(-1)[17:18].add_(1),
        lambda: weight.numpy().__imul__(-0.125),
        lambda: weight.numpy().__imul__(3.0),
    ):
        G.conv2d(x, weight, impl="cpu")
        change()
        torch.testing.assert_close(G.conv2d(x, weight, impl="cpu"), F.conv2d(x, weight), rtol=1e-4, atol=1e-4)


def test_packed_weights_of_views_are_those_of_their_tensor():
    x, weight, _ = make("conv2d", (1, 8, 6, 6), (8, 8, 3, 3))
    held = len(conv_packing._packed_weights)
    for _ in range(3):
        found = G.conv_transpose2d(x, weight.transpose(0, 1), impl="cpu")
        torch.testing.assert_close(found, F.conv_transpose2d(x, weight.transpose(0, 1)), rtol=1e-4, atol=1e-4)
        G.conv2d(x, weight, impl="cpu")
        weight.data.mul_(-2)
    assert len(conv_packing._packed_weights) == held + 2
    G.conv2d(x[:, :4], weight[:, :4], impl="cpu")  # a part is known by itself, and gone with it
    assert len(conv_packing._packed_weights) == held + 2
    del weight
    assert len(conv_packing._packed_weights) == held


def test_packed_weights_are_freed_with_the_weight():
    x, weight, _ = make("conv2d", (1, 8, 6, 6), (8, 8, 3, 3))
    G.conv2d(x, weight, impl="cpu")
    held = len(conv_packing._packed_weights)
    del weight
    assert len(conv_packing._packed_weights) == held - 1


def test_infinities_stay_where_they_belong():
    """A pixel that is not finite reaches the outputs under its taps and no other, padding and odd lengths included."""
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, _ = make("conv2d", (2, 5, 6, 6), (7, 5, 3, 3), dtype)
        x[0, 4, 0, 0] = float("inf")
        x[1, 0, 5, 5] = float("nan")
        ours = G.conv2d(x, weight, padding=1, impl="cpu").isfinite()
        assert torch.equal(ours, F.conv2d(x.float(), weight.float(), padding=1).isfinite())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": [1.0]}, TypeError, "input must be a Tensor"),
        ({"weight": None}, TypeError, "weight must be a Tensor"),
        ({"input": torch.ones(2, 5, 6, 6)}, RuntimeError, "input must have 4 channels"),
        ({"input": torch.ones(5, 4)}, RuntimeError, "input must have 4 dimensions"),
        (
            {"input": torch.ones(2, 4, 6, 6, dtype=torch.int64)},
            RuntimeError,
            "weight must have input's dtype torch.int64",
        ),
        ({"weight": torch.ones(4, 4, 3)}, RuntimeError, "weight must have 4 dimensions"),
        ({"weight": torch.ones(4, 4, 3, 3).double()}, RuntimeError, "weight must have input's dtype"),
        ({"weight": torch.ones(4, 4, 3, 3, device="meta")}, RuntimeError, "same device"),
        ({"bias": torch.ones(3)}, RuntimeError, "bias must have shape"),
        ({"stride": 0}, RuntimeError, "stride must be at least 1"),
        ({"dilation": 0}, RuntimeError, "dilation must be at least 1"),
        ({"padding": -1}, RuntimeError, "padding must be at least 0"),
        ({"stride": (1, 2, 3)}, RuntimeError, "stride must be one number or 2"),
        ({"groups": 3}, RuntimeError, "divisible by groups"),
        ({"groups": 0}, RuntimeError, "groups must be at least 1"),
        ({"residual": torch.ones(2, 4, 3, 3)}, RuntimeError, "residual must have shape"),
        ({"activation": "gelu"}, ValueError, "activation must be one of"),
        ({"activation": "prelu"}, ValueError, "needs slopes"),
        ({"impl": "mps"}, ValueError, "impl must be one of"),
        ({"impl": "cuda"}, UnsupportedImplementation, "no such implementation"),
    ],
)
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_bad_arguments(name, change, error, message):
    arguments = {"input": torch.ones(2, 4, 6, 6), "weight": torch.ones(4, 4, 3, 3), **change}
    with pytest.raises(error, match=message):
        getattr(G, name)(**arguments)


NO_WHOLE_NUMBERS = [
    (name, argument, value)
    for name, argument, value in itertools.product(
        ("conv2d", "conv_transpose2d"),
        ("stride", "padding", "dilation", "groups", "output_padding"),
        (True, 2.0, None, "same", "foo", (1, 2.0), torch.tensor(1.5)),
    )
    # A convolution has no output_padding, and some words for its padding.
    if name != "conv2d" or not (argument == "output_padding" or (argument == "padding" and isinstance(value, str)))
]


@pytest.mark.parametrize(("name", "argument", "value"), NO_WHOLE_NUMBERS, ids=str)
def test_whole_numbers_are_asked_for_by_name(name, argument, value):
    arguments = {"input": torch.ones(2, 4, 6, 6), "weight": torch.ones(4, 4, 3, 3), argument: value}
    with pytest.raises(TypeError):
        getattr(F, name)(**arguments)
    for impl in ("auto", "cpu"):
        with pytest.raises(TypeError, match=f"{name}: {argument} must be whole numbers, got"):
            getattr(G, name)(**arguments, impl=impl)


@pytest.mark.parametrize("impl", ["auto", "cpu"])
def test_anybodys_whole_numbers(impl):
    x, weight, bias = make("conv2d", (2, 4, 9, 8), (6, 2, 3, 3))
    for two in (np.int64(2), torch.tensor(2), (np.int32(2), 2)):
        options = {"stride": two, "padding": two, "groups": np.int64(2), "dilation": two}
        torch.testing.assert_close(
            G.conv2d(x, weight, bias, **options, impl=impl), F.conv2d(x, weight, bias, 2, 2, 2, 2)
        )


def _only_pytorchs():
    """Calls that PyTorch runs, and kernels do not."""
    torch.manual_seed(0)
    for name in NAMES:
        n = int(name[-2])
        x, weight = torch.randn(2, 4, *[5] * n), torch.randn(4, 4, *[3] * n)
        yield name, (x.cfloat(), weight.cfloat())
        yield name, ((3 * x).long(), (3 * weight).long())
        yield name, (x.to_mkldnn(), weight)
        if "transpose" not in name and n > 1:
            yield name, (x[:, :0], weight[:, :0])
    x, weight = torch.randn(3, 5), torch.randn(4, 5)
    yield "linear", (x.cfloat(), weight.cfloat())
    yield "linear", ((3 * x).long(), (3 * weight).long())
    yield "linear", (x, weight[0])
    yield "linear", (x, weight.to_sparse())
    yield "linear", (x[:, :0], weight[:, :0])
    for shape in ((), (1,), (1, 4), (3, 4)):
        yield "linear", (x, weight, torch.randn(shape))


@pytest.mark.parametrize("call", list(_only_pytorchs()), ids=lambda call: f"{call[0]} {call[1][0].dtype}")
def test_auto_leaves_to_pytorch_what_no_kernel_takes(call):
    name, tensors = call
    y, wanted = getattr(G, name)(*tensors), getattr(F, name)(*tensors)
    assert y.layout == wanted.layout
    torch.testing.assert_close(y.to_dense(), wanted.to_dense())
    with pytest.raises(UnsupportedImplementation, match="cannot run here"):
        getattr(G, name)(*tensors, impl="cpu")


def test_bad_sizes():
    x, weight = torch.ones(1, 2, 4, 4), torch.ones(2, 2, 5, 5)
    with pytest.raises(RuntimeError, match="smaller than the kernel"):
        G.conv2d(x, weight)
    with pytest.raises(RuntimeError, match="must be at least 1 everywhere"):
        G.conv_transpose2d(x, weight, padding=5)
    with pytest.raises(RuntimeError, match="output_padding must be smaller"):
        G.conv_transpose2d(x, weight, output_padding=1)
    with pytest.raises(RuntimeError, match="same' is not supported for strided"):
        G.conv2d(x, weight, padding="same", stride=2)


def test_explains_itself(monkeypatch):
    """What `auto` chooses, by class of shape; nothing is computed."""
    like = torch.empty(1)
    images = like.expand(64, 64, 32, 32)
    for name in NAMES:
        dims = int(name[-2])
        answer = explain(
            name, like.expand(64, 64, *[(4096, 64, 16)[dims - 1]] * dims), like.expand(64, 64, *[3] * dims)
        )
        assert answer.chosen == "cpu", answer

    def chosen(name, x, weight, *args, **options):
        return explain(name, x, weight, *args, **options).chosen

    assert chosen("conv2d", images, like.expand(64, 1, 3, 3), groups=64) == "reference"
    assert chosen("conv2d", images, like.expand(64, 32, 3, 3), None, 1, 0, 1, 2) == "reference"
    assert chosen("conv_transpose2d", images, like.expand(64, 1, 3, 3), groups=64) == "reference"
    assert chosen("conv_transpose2d", images, like.expand(64, 32, 4, 4), groups=2, stride=2) == "cpu"
    assert chosen("conv_transpose2d", images, like.expand(64, 3, 4, 4), stride=2) == "cpu"
    assert chosen("conv_transpose2d", images[:1, :, :8, :8], like.expand(64, 32, 4, 4), stride=2) == "cpu"
    assert chosen("conv_transpose2d", images[:1, :, :2, :2], like.expand(64, 32, 4, 4), stride=2) == "reference"
    assert chosen("conv2d", images[:1, :, :16, :16], like.expand(64, 64, 3, 3)) == "cpu"
    assert chosen("conv2d", images[:1, :, :8, :8], like.expand(64, 64, 3, 3)) == "reference"
    deep = images.reshape(1, 256, 128, 128)[:, :, :8, :8]
    assert chosen("conv2d", deep, like.expand(256, 256, 3, 3)) == "cpu"
    assert chosen("conv2d", deep, torch.empty(256, 256, 3, 3, requires_grad=True)) == "reference"
    assert chosen("conv2d", images, like.expand(3, 64, 3, 3)) == "cpu"
    assert chosen("conv2d", images, like.expand(3, 64, 1, 1)) == "reference"
    assert chosen("conv2d", images[:, :8], like.expand(64, 8, 3, 3)) == "reference"
    assert chosen("conv2d", images[:, :3], like.expand(64, 3, 4, 4)) == "reference"
    recorded = torch.empty(64, 3, 4, 4, requires_grad=True)
    assert chosen("conv2d", images[:, :3], recorded) == "cpu"
    last = torch.empty(64, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    assert chosen("conv2d", last, like.expand(64, 64, 1, 1)) == "reference"
    assert chosen("conv2d", last, like.expand(64, 64, 3, 3)) == "cpu"
    assert chosen("conv2d", last[:1], like.expand(32, 64, 4, 4), None, 2) == "reference"
    assert chosen("conv2d", last[:1], like.expand(64, 64, 4, 4), None, 2) == "reference"
    deep = torch.empty(1, 256, 8, 8).contiguous(memory_format=torch.channels_last)
    assert chosen("conv2d", deep, like.expand(256, 256, 4, 4), None, 2) == "cpu"
    assert chosen("conv_transpose2d", last[:1], like.expand(64, 32, 4, 4), stride=2) == "cpu"
    small = torch.empty(1, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    assert chosen("conv_transpose2d", small, like.expand(64, 32, 4, 4), stride=2) == "reference"
    assert chosen("conv2d", torch.empty(64, 64, 32, 32), like.expand(64, 64, 1, 1)) == "cpu"
    assert chosen("conv2d", torch.empty(16, 256, 16, 16), like.expand(256, 256, 1, 1)) == "reference"
    assert chosen("linear", like.expand(2, 2), like.expand(2, 2)) == "reference"
    for mkl, choice in ((False, "cpu"), (True, "reference")):
        monkeypatch.setattr("gencore.ops.linear.MKL_RUNS_AT_FULL_SPEED", mkl)
        monkeypatch.setattr("gencore.ops.conv.HAS_BFLOAT16", mkl)
        assert chosen("conv2d", images.bfloat16(), like.bfloat16().expand(64, 64, 3, 3)) == choice
        assert chosen("conv_transpose2d", images.bfloat16(), like.bfloat16().expand(64, 64, 4, 4)) == choice
        assert chosen("conv_transpose2d", images.bfloat16(), like.bfloat16().expand(64, 3, 4, 4)) == "reference"
        assert chosen("linear", like.expand(1024, 1024), like.expand(1024, 1024)) == choice
        monkeypatch.setattr("gencore.ops.self_attention.MKL_RUNS_AT_FULL_SPEED", mkl)
        keys, values = like.expand(8, 1024, 64), like.expand(8, 1024, 512)
        assert chosen("self_attention", keys, keys, values) == choice
        assert chosen("self_attention", keys, keys, values[..., :256]) == "cpu"
        assert chosen("self_attention", keys.clone().requires_grad_(), keys, values[..., :256]) == choice
        assert chosen("self_attention", *(t[:1].expand(9, -1, -1) for t in (keys, keys, values))) == "cpu"
    assert chosen("self_attention", *[like.expand(2, 256, 8)] * 3) == "reference"
    assert chosen("self_attention", *[like.expand(2, 1024, 8)] * 3) == "cpu"


# --- scale, autocast, gradients of zero ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [3, 40])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_scale(name, channels, dtype):
    """One number, one a channel, one a sample and channel; in registers, in the cache and for few channels."""
    shape = (40, channels, 3, 3) if "transpose" in name else (channels, 40, 3, 3)
    x, weight, _ = make(name, (3, 40, 5, 7), shape, dtype, bias=False)
    weight *= 0.05
    bias, residual = torch.randn(channels).to(dtype), torch.randn_like(getattr(F, name)(x, weight))
    for scale, activation, channels_last in itertools.product(
        (torch.tensor(0.7), torch.rand(1), torch.rand(channels), torch.rand(3, channels), torch.rand(channels, 3).T),
        ("leaky_relu", "tanh"),
        (False, True),
    ):
        first = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        function = partial(getattr(G, name), activation=activation)
        run = lambda *t, impl, f=function: f(*t[:3], scale=t[3], residual=t[4], impl=impl)  # noqa: E731
        tensors = (first, weight, bias, scale.to(dtype), residual)
        exact = run(*[t.double() for t in tensors], impl="reference")
        assert_as_good(run(*tensors, impl="cpu"), run(*tensors, impl="reference"), exact, f"{scale.shape}")


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 4)])
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize(("name", "groups"), [("conv2d", 1), ("conv2d", 2), ("conv_transpose2d", 2)])
def test_gradients_with_scale(name, groups, shape, with_gradient):
    transposed = "transpose" in name
    w_shape = (4, 4 // groups, 2, 1) if transposed else (4, 2 // groups, 2, 1)
    x, weight, bias = make(name, (2, 4 if transposed else 2, 3, 2), w_shape, torch.float64, bias=False)
    bias = torch.randn(4, dtype=torch.float64)
    scale = torch.rand(shape, dtype=torch.float64) + 0.5
    fixed = () if with_gradient else (scale,)
    call = partial(getattr(G, name), groups=groups, activation="leaky_relu", impl="cpu")
    function = lambda *t: call(*t[:3], scale=(*t, *fixed)[3])  # noqa: E731
    tensors = [t.requires_grad_() for t in (x, weight, bias, *((scale,) if with_gradient else ()))]
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("name", "groups"), [("conv2d", 1), ("conv2d", 2), ("conv_transpose2d", 1), ("conv_transpose2d", 3)]
)
def test_gradient_of_a_scale_comes_from_that_of_the_weight(name, groups, per_channel, dtype):
    """Result and gradients of one fused call, against those of PyTorch's ops that keep the unscaled sums."""
    found = []
    inputs, channels = (36, 48) if "transpose" in name else (48, 36)
    for seed in range(6):
        x, weight, _ = make(name, (4, inputs, 7, 8), (36, 48 // groups, 3, 3), dtype, False, seed)
        weight *= 0.05
        scale = torch.rand(channels if per_channel else ()).to(dtype) + 0.5
        bias = torch.randn(channels).to(dtype)
        ours = partial(getattr(G, name), stride=2, padding=1, groups=groups, activation="tanh", impl="cpu")
        conv = partial(getattr(F, name), stride=2, padding=1, groups=groups)

        def composed(x, weight, scale, bias, conv=conv):
            return torch.tanh(conv(x, weight) * scale.view(-1, 1, 1) + bias.view(-1, 1, 1))

        tensors = (x, weight, scale, bias)
        grad = torch.randn(composed(*tensors).shape).to(dtype)
        calls = (lambda x, w, s, b, f=ours: f(x, w, b, scale=s), composed)
        exact = all_gradients(composed, [t.double() for t in tensors], grad.double())
        found.append([*(all_gradients(f, tensors, grad) for f in calls), exact])
    for i, what in enumerate(("y", "x.grad", "weight.grad", "scale.grad", "bias.grad")):
        assert_as_good(*(torch.stack([run[side][i] for run in found]) for side in range(3)), what)


def test_a_small_scale_keeps_a_gradient_in_range():
    """In float16 the gradient of the weight without the scale would overflow before it is multiplied."""
    tensors = [
        torch.full(shape, value) for shape, value in (((8, 8, 16, 16), 10.0), ((4, 8, 1, 1), 1e-4), ((4,), 1e-3))
    ]
    grad = torch.full((8, 4, 16, 16), 100.0)
    call = lambda x, w, s: G.conv2d(x, w, scale=s, impl="cpu")  # noqa: E731
    half, exact = (all_gradients(call, [t.to(dtype) for t in tensors], grad) for dtype in (torch.half, torch.double))
    torch.testing.assert_close(half, [t.half() for t in exact], rtol=1e-2, atol=1e-3)


def test_a_scale_keeps_no_sums():
    """With gradients of a scale of channels, everything is one op, and one weight gradient serves both."""
    x, weight, bias = (t.requires_grad_() for t in make("conv2d", (2, 4, 6, 6), (4, 4, 3, 3)))
    for scale in (torch.rand(()), torch.rand(4)):
        with torch.profiler.profile() as profile:
            y = G.conv2d(x, weight, bias, scale=scale.requires_grad_(), activation="relu", impl="cpu")
            assert {f.name() for f, _ in y.grad_fn.next_functions if f} == {"torch::autograd::AccumulateGrad"}
            y.sum().backward()
        calls = {event.key: event.count for event in profile.key_averages() if event.key.startswith("gencore::")}
        assert calls == {"gencore::convolution": 2, "gencore::convolution_weight_gradient": 1}


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", "Linear"])
def test_layers_follow_autocast(name):
    """Dtypes and values of torch.nn's layers, in and out of the region; mixed dtypes are refused as there."""
    sizes = (20, 30) if name == "Linear" else (20, 30, 3)
    ours = getattr(gencore.nn, name)(*sizes, impl="cpu")
    theirs = getattr(torch.nn, name)(*sizes)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn((4, 20) if name == "Linear" else (4, 20, 6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        results = [layer(x) for layer in (ours, theirs)]
        with torch.autocast("cpu", enabled=False):
            assert ours(x).dtype == torch.float32
    for layer, y in zip((ours, theirs), results, strict=True):
        assert y.dtype == torch.bfloat16
        y.sum().backward()
        assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=2e-2, atol=2e-2 * theirs.weight.grad.max())
    for layer in (ours, theirs):
        with pytest.raises(RuntimeError, match="type"):
            layer(x.bfloat16())
        with pytest.raises(RuntimeError), torch.autocast("cpu", torch.bfloat16):
            layer(x.double())


def test_autocast_compiles():
    x, weight, bias = make("conv2d", (2, 4, 6, 6), (8, 4, 3, 3))
    function = torch.compile(lambda *t: G.conv2d(*t, impl="cpu"), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        y = function(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert function(x, weight, bias).dtype == torch.float32


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_second_order_gradients_are_zero_where_only_a_kink_leads(activation):
    """As in PyTorch: zeros, not None, for the bias of a gradient penalty's last ReLU; and the penalty's own values."""
    x, weight, bias = (t.requires_grad_() for t in make("conv2d", (2, 3, 5, 5), (4, 3, 3, 3)))
    found = []
    for impl in ("cpu", "reference"):
        y = G.conv2d(x, weight, bias, activation=activation, impl=impl)
        (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), (x, weight, bias)))
    torch.testing.assert_close(*found)
    assert not found[0][2].any()
    assert not found[0][0].any()


# --- layers ----------------------------------------------------------------------------------------------------------

LAYERS = [
    ("Conv1d", (6, 8, 3), {"stride": 2, "padding": "valid", "bias": False}, (2, 6, 9)),
    ("Conv2d", (6, 8, (3, 2)), {"padding": (1, 2), "padding_mode": "reflect", "groups": 2}, (2, 6, 7, 9)),
    ("Conv2d", (6, 8, 3), {"padding": "same", "dilation": 2, "padding_mode": "circular"}, (2, 6, 7, 9)),
    ("Conv3d", (3, 8, 3), {"padding": 1}, (2, 3, 4, 5, 6)),
    ("ConvTranspose1d", (6, 8, 4), {"stride": 2, "output_padding": 1}, (2, 6, 9)),
    ("ConvTranspose2d", (6, 8, 4), {"stride": 2, "padding": 1, "groups": 2}, (2, 6, 7, 9)),
    ("ConvTranspose3d", (3, 8, 4), {"stride": 2, "padding": 1}, (2, 3, 4, 3, 2)),
    ("Linear", (20, 30), {}, (4, 5, 20)),
]


@pytest.mark.parametrize(("name", "sizes", "options", "shape"), LAYERS)
def test_layers_are_torchs(name, sizes, options, shape):
    torch.manual_seed(0)
    ours = getattr(gencore.nn, name)(*sizes, **options, impl="cpu")
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(*sizes, **options)
    assert str(ours) == str(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    fused = getattr(gencore.nn, name)(*sizes, **options, activation="leaky_relu", negative_slope=0.2, impl="cpu")
    fused.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(fused(x), F.leaky_relu(theirs(x), 0.2), rtol=1e-4, atol=1e-5)
    assert "activation='leaky_relu', negative_slope=0.2" in str(fused)
    if "Transpose" in name:
        size = [n + 1 for n in theirs(x).shape[2:]] if "output_padding" not in options else theirs(x).shape[2:]
        torch.testing.assert_close(ours(x, size), theirs(x, size), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "silu"])
@pytest.mark.parametrize("shape", [(7, 33), (70, 130), (2, 3, 16), (16,), (0, 5)])
def test_linear(shape, activation, dtype):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    weight, bias = torch.randn(37, shape[-1], dtype=dtype) * 0.2, torch.randn(37, dtype=dtype)
    grad = torch.randn((*shape[:-1], 37), dtype=dtype)

    def run(impl):
        return lambda x, w, b: G.linear(x, w, b, activation=activation, impl=impl)

    exact = all_gradients(run("reference"), [t.double() for t in (x, weight, bias)], grad)
    theirs = all_gradients(run("reference"), (x, weight, bias), grad)
    for o, t, e in zip(all_gradients(run("cpu"), (x, weight, bias), grad), theirs, exact, strict=True):
        assert o.shape == t.shape
        assert o.dtype == t.dtype
        if o.numel():
            assert_as_good(o, t, e)


def test_linear_derivatives():
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 5), (4, 5), (4,))]
    for activation in ("tanh", "silu"):
        function = lambda *t, a=activation: G.linear(*t, activation=a, impl="cpu")  # noqa: E731
        assert torch.autograd.gradcheck(function, tensors)
        assert torch.autograd.gradgradcheck(function, tensors)


def test_linear_refuses():
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    for arguments, message in (
        ((x, torch.ones(4, 2)), "input must have shape"),
        ((x, weight, torch.ones(3)), "bias must have shape"),
        ((x.long(), weight), "weight must have input's dtype torch.int64"),
        ((x, weight.double()), "weight must have input's dtype"),
        ((x, torch.ones(1, 4, 3)), "weight must have 2 dimensions"),
    ):
        with pytest.raises(RuntimeError, match=message):
            G.linear(*arguments)


PYTORCHS_OWN = [n.replace("conv", "nn.Conv").replace("_transpose", "Transpose") for n in NAMES] + ["nn.Linear"]


@pytest.mark.parametrize("name", PYTORCHS_OWN)
def test_pytorchs_own_samples(name):
    """The inputs that PyTorch tests its layers with; results and gradients."""
    from torch.testing._internal.common_modules import module_db

    info = next(m for m in module_db if m.name == name)
    count = 0
    for sample in info.module_inputs_func(info, "cpu", torch.float32, requires_grad=True, training=True):
        theirs = info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
        layer = getattr(gencore.nn, name.removeprefix("nn."))
        ours = layer(*sample.constructor_input.args, **sample.constructor_input.kwargs, impl="cpu")
        ours.load_state_dict(theirs.state_dict())
        arguments = sample.forward_input
        (x,) = (t for t in (*arguments.args, *arguments.kwargs.values()) if isinstance(t, torch.Tensor))
        results = []
        for model in (ours, theirs):
            y = model(*arguments.args, **arguments.kwargs)
            grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
            results.append([y, *torch.autograd.grad(y, (x, *model.parameters()), grad)])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
        count += 1
    assert count > 1


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*NAMES, "linear"])
def test_pytorchs_own_op_samples(name, dtype):
    """The calls that PyTorch tests its functions with, the forbidden ones included; results and gradients."""
    from torch.testing._internal.common_methods_invocations import op_db

    info = next(op for op in op_db if op.name == f"nn.functional.{name}")
    count = 0
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        leaves = [t for t in (sample.input, *sample.args, *sample.kwargs.values()) if isinstance(t, torch.Tensor)]
        results = []
        for function in (partial(getattr(G, name), impl="cpu"), getattr(F, name)):
            y = function(sample.input, *sample.args, **sample.kwargs)
            grad = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
            results.append([y, *torch.autograd.grad(y, leaves, grad)])
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-4)
        count += 1
    assert count > 3
    for case in info.error_inputs("cpu") if info.error_inputs_func else ():
        sample = case.sample_input
        with pytest.raises(case.error_type):
            getattr(G, name)(sample.input, *sample.args, **sample.kwargs, impl="cpu")


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_a_weight_in_channels_last_turns_the_result(name, impl):
    x, weight = torch.randn(2, 6, 5, 4), torch.randn(6, 6, 3, 3).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = getattr(G, name)(x, weight, impl=impl)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, getattr(G, name)(x, weight.contiguous(), impl=impl))
    backend = "inductor" if impl == "cpu" else "aot_eager"  # the reference is PyTorch's own code
    double = torch.compile(lambda x, w: getattr(G, name)(x, w, impl=impl) * 2, fullgraph=True, backend=backend)
    compiled = double(x, weight)
    torch.testing.assert_close(compiled, 2 * y)
    assert compiled.stride() == y.stride()
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    (wanted,) = torch.autograd.grad(getattr(G, name)(x, weight.contiguous(), impl=impl).square().sum(), x)
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4)
