"""The fused block: torch.nn's three modules in sequence, in training and in evaluation."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import prune

import gencore.nn
from gencore.nn.batchnorm import _BatchNormAct
from gencore.nn.block import conv_norm_act
from gencore.ops import conv_moments
from tests.accuracy import FLOOR, Comparison, assert_accurate
from tests.opspec import LAYOUTS

CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "conv2d": ("Conv2d", (20, 30, 4), {"stride": 2, "padding": 1, "bias": False}, (4, 20, 8, 8)),
    "conv2d reflected": ("Conv2d", (20, 30, 3), {"padding": 1, "padding_mode": "reflect"}, (4, 20, 6, 7)),
    "conv1d": ("Conv1d", (20, 30, 5), {}, (4, 20, 12)),
    "conv_transpose2d": ("ConvTranspose2d", (20, 30, 4), {"stride": 2, "padding": 1}, (4, 20, 5, 5)),
    "conv_transpose3d": ("ConvTranspose3d", (20, 30, 4), {"stride": 2, "padding": 1, "bias": False}, (2, 20, 3, 2, 3)),
    "groups": ("Conv2d", (32, 32, 3), {"groups": 2}, (4, 32, 6, 6)),
}


def build(case: str, affine: bool = True) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Ours, torch.nn's with the same weights and statistics, and an input."""
    name, sizes, options, shape = CASES[case]
    torch.manual_seed(0)
    norm = f"BatchNorm{len(shape) - 2}d"
    ours = gencore.nn.ConvNormAct(
        getattr(gencore.nn, name)(*sizes, **options, impl="cpu"),
        getattr(gencore.nn, norm)(sizes[1], affine=affine, activation="leaky_relu", negative_slope=0.2),
    )
    for tensor in ours[1].state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    theirs = nn.Sequential(
        getattr(nn, name)(*sizes, **options), getattr(nn, norm)(sizes[1], affine=affine), nn.LeakyReLU(0.2)
    )
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randn(shape)


def parameters(model: nn.Module) -> list[torch.Tensor]:
    """All but the convolution's bias, which a batch norm takes off again: its gradient is nothing but rounding."""
    return [p for name, p in model.named_parameters() if name != "0.bias"]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_is_the_three_modules_in_sequence(case: str, affine: bool) -> None:
    ours, theirs, x = build(case, affine)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        results = []
        for model in (ours, theirs):
            y = model(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), parameters(model))])
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("residual", [False, True])
def test_folded_is_as_near_to_float64_as_pytorch(dtype: torch.dtype, residual: bool) -> None:
    ours, theirs, x = build("conv_transpose2d")
    ours, theirs, x = ours.to(dtype).eval(), theirs.to(dtype).eval(), x.to(dtype)
    exact_model = copy.deepcopy(theirs).double()
    with torch.no_grad():
        extra = torch.randn_like(theirs[:2](x)) if residual else None

        def plain(model: Any, x: torch.Tensor) -> torch.Tensor:
            y = model[1](model[0](x))
            return model[2](y if extra is None else y + extra.to(x.dtype))

        exact, error = plain(exact_model, x.double()), []
        for y in (ours(x, extra), plain(theirs, x)):
            assert y.dtype == dtype
            error.append((y.double() - exact).abs().max())
    assert error[0] <= 2 * error[1] + 4 * torch.finfo(dtype).eps * (1 if dtype == torch.float64 else 0)


def count_norms(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Has an entry for each time that a batch norm of ours runs."""
    called: list[bool] = []
    real = _BatchNormAct._normalize

    def counted(*args: Any) -> torch.Tensor:
        called.append(True)
        return real(*args)

    monkeypatch.setattr(_BatchNormAct, "_normalize", counted)
    return called


def test_folds_only_where_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _, x = build("conv2d")
    called = count_norms(monkeypatch)
    ours(x)  # training: the statistics of the batch
    ours.eval()
    ours(x)  # gradients are recorded
    assert len(called) == 2
    with torch.no_grad():
        ours(x)
    assert len(called) == 2
    ours[1].running_mean += 1  # the next call sees every change of the statistics and parameters
    with torch.no_grad():
        folded = ours(x)
        torch.testing.assert_close(folded, ours[1](ours[0](x)), rtol=1e-4, atol=1e-5)


def _spectral_norm(model: nn.Module) -> None:
    nn.utils.spectral_norm(model[0])
    for _ in range(3):
        model[0](torch.randn(1, 20, 8, 8))


WEIGHTS = {
    "weight_norm": lambda model: nn.utils.weight_norm(model[0]),
    "spectral_norm": _spectral_norm,
    "pruned": lambda model: prune.random_unstructured(model[0], "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", WEIGHTS)
def test_in_evaluation_a_hook_still_makes_the_weight(kind: str) -> None:
    """Their hook computes the weight before each call, from parameters that a state_dict may just have changed."""
    ours, theirs, x = build("conv2d")
    for model in (ours, theirs):
        WEIGHTS[kind](model)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(value.shape, generator=generator) if "weight_" in name and "mask" not in name else value
        for name, value in theirs.state_dict().items()
    }
    for model in (ours, theirs):
        model.load_state_dict(state)
        model.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


class _Doubled(gencore.nn.Conv2d):
    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 2 * super().forward(*args, **kwargs)


def _instance_forward(layer: nn.Module) -> Any:
    real = layer.forward
    layer.forward = lambda *args: 2 * real(*args)  # type: ignore[assignment]


CHANGES = {
    "subclass": lambda layer: setattr(layer, "__class__", _Doubled),
    "instance": _instance_forward,
    "pre_hook": lambda layer: layer.register_forward_pre_hook(lambda _, args: (args[0] * 2,)),
    "hook": lambda layer: layer.register_forward_hook(lambda _, args, y: 2 * y),
    "global_hook": lambda layer: nn.modules.module.register_module_forward_hook(
        lambda module, args, y: 2 * y if module is layer else y
    ),
}


@pytest.mark.parametrize(("change", "place"), [c for c in product(CHANGES, (0, 1)) if c != ("subclass", 1)])
def test_in_evaluation_what_layers_have_become_is_called(change: str, place: int) -> None:
    ours, _, x = build("conv2d")
    ours.eval()
    handle = CHANGES[change](ours[place])
    try:
        with torch.no_grad():
            y = ours(x)
            torch.testing.assert_close(y, ours[1](ours[0](x)), rtol=1e-4, atol=1e-5)
    finally:
        if change == "global_hook":
            handle.remove()
    with torch.no_grad():
        assert not torch.allclose(y, build("conv2d")[0].eval()(x), rtol=1e-2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("conv", "norm", "shape", "message"),
    [
        ("Conv2d", "BatchNorm2d", (4, 8, 8), "expected 4D input"),
        ("Conv2d", "BatchNorm1d", (2, 4, 8, 8), "expected 2D or 3D input"),
        ("Conv1d", "BatchNorm1d", (4, 8), "have shape|running_mean"),
        ("Conv2d", "BatchNorm2d with 7", (2, 4, 8, 8), "must have shape"),
        ("Conv2d", "BatchNorm2d in float64", (2, 4, 8, 8), "dtype"),
    ],
)
def test_what_the_norm_refuses_is_refused_folded(
    conv: str, norm: str, shape: tuple[int, ...], message: str, training: bool
) -> None:
    channels = 7 if "7" in norm else 5
    dtype = torch.float64 if "float64" in norm else torch.float32
    layer = getattr(gencore.nn, norm.split()[0])(channels, activation="relu", dtype=dtype)
    block = gencore.nn.ConvNormAct(getattr(gencore.nn, conv)(4, 5, 3), layer).train(training)
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError), match=message):
        block(torch.randn(shape))


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_folding_rounds_no_statistics(dtype: torch.dtype, impl: str) -> None:
    """Large running means, which a bias of 16 bits would lose; root mean squares, for one number hangs on chance."""
    torch.manual_seed(1)
    ours = gencore.nn.ConvNormAct(
        gencore.nn.Conv2d(32, 32, 3, impl=impl), gencore.nn.BatchNorm2d(32, activation="relu")
    ).eval()
    with torch.no_grad():
        for tensor, values in (
            (ours[1].running_mean, torch.randn(32) * 3),
            (ours[1].running_var, 0.01 + 2 * torch.rand(32)),
            (ours[1].weight, torch.randn(32)),
            (ours[1].bias, torch.randn(32)),
            (ours[0].bias, torch.randn(32) * 3),
        ):
            tensor.copy_(values)
        theirs = nn.Sequential(nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU()).eval()
        theirs.load_state_dict(ours.state_dict())
        ours, theirs, x = ours.to(dtype), theirs.to(dtype), torch.randn(2, 32, 16, 16).to(dtype)
        exact = copy.deepcopy(theirs).double()(x.double())
        errors = [float((model(x).double() - exact).square().mean().sqrt()) for model in (ours, theirs)]
    assert errors[0] <= 1.1 * errors[1]


@pytest.mark.parametrize("training", [True, False])
def test_output_size(training: bool) -> None:
    ours, theirs, x = build("conv_transpose2d")
    for size in ((10, 11), (11, 10)):
        with torch.no_grad():
            wanted = theirs[2](theirs.train(training)[1](theirs[0](x, size)))
            torch.testing.assert_close(ours.train(training)(x, output_size=size), wanted, rtol=1e-4, atol=1e-5)


def test_folded_under_compile() -> None:
    ours, _, x = build("conv_transpose2d")
    compiled = torch.compile(ours.eval(), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), ours(x))


def test_layers_under_names_of_their_own_and_of_torch() -> None:
    ours, theirs, x = build("conv2d")
    named = nn.Sequential(OrderedDict(conv=ours[0], norm=ours[1])).eval()
    with torch.no_grad():
        torch.testing.assert_close(conv_norm_act(named.conv, named.norm, x), ours.eval()(x))
        torch.testing.assert_close(conv_norm_act(*theirs.eval()[:2], x), theirs[:2](x))


# --- training: the convolution gathers the batch's statistics --------------------------------------------------------

GATHERING = [case for case in CASES if case != "groups"]


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every convolution gathers, small ones too; the list has an entry for each that did."""
    calls: list[str] = []
    real = conv_moments.MOMENTS

    def counted(*args: Any) -> Any:
        calls.append(args[-1])
        return real(*args)

    monkeypatch.setattr(conv_moments, "MOMENTS", counted)
    monkeypatch.setattr(conv_moments, "_pays", lambda *_, **__: True)
    return calls


@pytest.fixture
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results(model: nn.Module, x: torch.Tensor, second: bool = False) -> dict[str, torch.Tensor]:
    """Output, gradients, running statistics; with ``second``, also gradients of the gradient's norm."""
    x = x.clone().requires_grad_()
    y = model(x)
    inputs = {"x": x, **dict(model.named_parameters())}
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).bfloat16()
    first = torch.autograd.grad(y, list(inputs.values()), cotangent.to(y.dtype), create_graph=second)
    found = {"y": y, **{f"gradient of {n}": g for n, g in zip(inputs, first, strict=True)}}
    if second:
        twice = torch.autograd.grad(
            sum(g.square().sum() for g in first), list(inputs.values()), allow_unused=True, materialize_grads=True
        )
        found |= {f"second gradient of {n}": g for n, g in zip(inputs, twice, strict=True)}
    return {n: t.detach().clone() for n, t in [*found.items(), *model.named_buffers()]}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("case", GATHERING)
def test_gathered_is_the_three_modules_in_sequence(case: str, layout: str, gathered: list[str]) -> None:
    ours, theirs, x = build(case)
    ours, theirs, x = ours.double(), theirs.double(), LAYOUTS[layout](x.double())
    ours[1].impl = "cpu"
    torch.testing.assert_close(results(ours, x, second=True), results(theirs, x, second=True), rtol=1e-8, atol=1e-8)
    assert gathered == ["cpu"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", GATHERING)
def test_gathered_is_as_near_to_float64_as_pytorch(
    case: str, layout: str, offset: float, dtype: torch.dtype, gathered: list[str]
) -> None:
    def compare(seed: int) -> list[Comparison]:
        ours, theirs, x = build(case)
        ours[1].impl = "cpu"
        x = LAYOUTS[layout](x * (1 + 0.01 * seed)).to(dtype)
        for model in (ours, theirs):
            model.to(dtype)[1].float()  # statistics that bfloat16 would round away
            if model[0].bias is not None:
                model[0].bias.data += offset
        exact = results(copy.deepcopy(theirs).double(), x.double())
        found = results(theirs, x)
        return [
            Comparison(n, a, found[n].to(a.dtype), exact[n])
            for n, a in results(ours, x).items()
            if a.is_floating_point() and n != "gradient of 0.bias"
        ]

    assert_accurate(compare(0), lambda: (compare(seed) for seed in range(1, 9)))
    assert set(gathered) == {"cpu"}


# name, channels in and out, spatial size, kernel, stride, padding
SHAPES = {
    "1d": (6, 33, (50,), 3, 1, 1),
    "2d": (6, 70, (13, 9), 3, 1, 1),
    "2d strided": (6, 5, (13, 9), 4, 2, 1),
    "2d of one channel": (20, 1, (13, 9), 3, 1, 0),
    "2d of three channels": (20, 3, (13, 9), 3, 1, 1),
    "2d of 1x1": (6, 20, (13, 9), 1, 1, 0),
    "2d of phases without taps": (6, 20, (7, 5), 1, 2, 0),
    "3d": (3, 17, (4, 5, 6), 3, 2, 1),
}


def raw_call(shape: str, transposed: bool, batch: int, dtype: torch.dtype, layout: str, offset: float) -> list[Any]:
    """The arguments of the raw op; ``offset`` moves the results by that many standard deviations, and some more."""
    channels, out_channels, size, kernel, stride, padding = SHAPES[shape]
    n = len(size)
    out = [
        (i - 1) * stride - 2 * padding + kernel if transposed else (i + 2 * padding - kernel) // stride + 1
        for i in size
    ]
    weight = torch.randn((channels, out_channels) if transposed else (out_channels, channels)) / channels**0.5
    weight = weight.view(*weight.shape, *[1] * n) * torch.rand(*weight.shape, *[kernel] * n)
    x = LAYOUTS[layout](torch.randn(batch, channels, *size) + offset)
    tensors = [t.to(dtype) for t in (x, weight, torch.randn(out_channels) + offset)]
    return [*tensors, [stride] * n, [padding] * n, [1] * n, out, 1, transposed, "cpu"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES)
def test_moments_are_those_of_the_result(shape: str, layout: str, offset: float, dtype: torch.dtype) -> None:
    """As near to float64's as those that PyTorch's batch norm takes of the same tensor."""
    floor = FLOOR[torch.float64 if dtype == torch.float64 else torch.float32]
    for transposed, batch in product((False, True), (1, 2, 37)):
        call = raw_call(shape, transposed, batch, dtype, layout, offset)
        y, mean, var = conv_moments.MOMENTS(*call)
        function = getattr(torch.nn.functional, f"conv{'_transpose' * transposed}{len(call[3])}d")
        plain = function(*(t.double() for t in call[:3]), *call[3:5])
        rounding = 0.02 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(y.double(), plain, rtol=rounding, atol=rounding * float(plain.abs().max()))
        exact_var, exact_mean = torch.var_mean(y.double(), [0, *range(2, y.dim())], correction=0)
        running_mean, running_var = torch.zeros_like(mean), torch.zeros_like(var)
        torch.nn.functional.batch_norm(y, running_mean, running_var, training=True, momentum=1.0)
        count = y.numel() / y.shape[1]
        for ours, theirs, exact, unit in (
            (mean, running_mean, exact_mean, exact_mean.abs() + exact_var.sqrt()),
            (var, running_var.double() * ((count - 1) / count), exact_var, exact_var),
        ):
            tiny = torch.finfo(torch.float32).tiny  # all values of a channel may be the same
            errors = [float(((found - exact).abs() / (unit + tiny)).max()) for found in (ours, theirs)]
            assert errors[0] <= 2 * errors[1] + floor, f"transposed {transposed}, batch {batch}: {errors}"


@pytest.mark.usefixtures("_restore_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_moments_have_the_same_bits_at_any_number_of_threads(layout: str, dtype: torch.dtype) -> None:
    for shape, transposed in product(SHAPES, (False, True)):
        call = raw_call(shape, transposed, 37, dtype, layout, 3.0)
        runs = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            runs.append(conv_moments.MOMENTS(*call))
        for run in runs[1:]:
            torch.testing.assert_close(run, runs[0], rtol=0, atol=0)


def test_moments_opcheck() -> None:
    for shape, transposed, layout in (("2d", False, "channels_last"), ("1d", True, "contiguous")):
        call = raw_call(shape, transposed, 3, torch.float32, layout, 0.0)
        call[:3] = [t.requires_grad_() for t in call[:3]]
        assert set(torch.library.opcheck(torch.ops.gencore.convolution_moments.default, tuple(call)).values()) == {
            "SUCCESS"
        }


def test_moments_refuse_what_they_cannot_take() -> None:
    call = raw_call("2d", False, 2, torch.float32, "contiguous", 0.0)
    with pytest.raises(RuntimeError, match="float16"):
        conv_moments.MOMENTS(*(t.half() for t in call[:3]), *call[3:])
    x, weight, bias = call[:3]
    raw = torch.ops.gencore_c
    packed = torch.empty(raw.conv_packed_bytes(weight, 1, True, 0), dtype=torch.uint8)
    raw.conv_pack(weight, 1, True, 0, packed)
    geometry = (1, [3, 3], [1, 1], [1, 1], [1, 1], False)
    y = torch.empty(2, 70, 13, 9)
    for activation, moments, message in (
        (1, (torch.empty(70), torch.empty(70)), "after an activation"),
        (0, (torch.empty(70),), "go together"),
        (0, (torch.empty(70), torch.empty(69)), "var must have 70 elements"),
        (0, (torch.empty(70, dtype=torch.float64), torch.empty(70)), "mean has the wrong dtype"),
    ):
        with pytest.raises(RuntimeError, match=message):
            raw.conv_forward(x, packed, None, bias, None, None, *geometry, activation, 0.0, False, y, *moments)


@pytest.mark.parametrize("case", ["conv1d", "conv_transpose2d"])
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
def test_gathered_first_and_second_derivatives(case: str, activation: str, gathered: list[str]) -> None:
    name, (_, _, kernel), options, shape = CASES[case]
    norm = getattr(gencore.nn, f"BatchNorm{len(shape) - 2}d")(3, activation=activation, impl="cpu")
    block = gencore.nn.ConvNormAct(getattr(gencore.nn, name)(2, 3, kernel, **options, impl="cpu"), norm).double()
    dims = len(shape) - 2
    x = torch.randn(2, 2, *[5 if dims == 1 else 3] * dims, dtype=torch.float64)  # every number is visited
    parameters = dict(block.named_parameters())
    residual = torch.randn_like(block(x))

    def function(x: torch.Tensor, residual: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        given = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(block, given, (x, residual))

    inputs = tuple(t.detach().requires_grad_() for t in (x, residual, *parameters.values()))
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)
    assert gathered


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gathered_under_compile(gathered: list[str]) -> None:
    torch._dynamo.reset()
    graphs: list[str] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(" ".join(str(node.target) for node in graph.graph.nodes))
        return graph.forward

    for layout, backend in (("contiguous", "aot_eager"), ("channels_last", "inductor")):
        eager, _, x = build("conv2d")
        eager[1].impl = "cpu"
        x = LAYOUTS[layout](x)
        compiled, inspected = copy.deepcopy(eager), copy.deepcopy(eager)
        expected = results(eager, x)
        found = results(torch.compile(compiled, fullgraph=True, backend=backend), x)
        torch.testing.assert_close(
            {n.removeprefix("_orig_mod."): t for n, t in found.items()},
            {
                n if "gradient" not in n or n == "gradient of x" else n.replace("of ", "of _orig_mod."): t
                for n, t in expected.items()
            },
        )
        torch.compile(inspected, fullgraph=True, backend=record)(x)
    assert all("gencore.convolution_moments" in graph for graph in graphs)
    assert len(graphs) == 2


def test_gathered_under_autocast(gathered: list[str]) -> None:
    """The convolution runs in bfloat16, and the statistics are those of what it stored."""
    ours, _, x = build("conv2d")
    plain = copy.deepcopy(ours)
    plain[0].register_forward_hook(lambda *_: None)  # then nothing is gathered
    found = []
    for model in (ours, plain):
        model[1].impl = "cpu"
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        found.append([y, model[0].weight.grad, model[1].running_mean, model[1].running_var])
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02)
    torch.testing.assert_close(found[0][2:], found[1][2:], rtol=1e-5, atol=1e-6)
    assert len(gathered) == 1


def test_one_value_a_channel_is_refused_as_pytorch_refuses_it(gathered: list[str]) -> None:
    ours, theirs, _ = build("conv2d")
    x = torch.randn(1, 20, 2, 2)
    for model in (theirs, ours):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model(x)
    assert len(gathered) == 1


def test_without_a_batch_each_layer_sees_to_itself(gathered: list[str]) -> None:
    """The result of a convolution without a batch, ``[C, L]``, a batch norm takes for ``[N, C]``."""
    ours = gencore.nn.ConvNormAct(gencore.nn.Conv1d(20, 30, 5, impl="cpu"), gencore.nn.BatchNorm1d(8))
    theirs = nn.Sequential(nn.Conv1d(20, 30, 5), nn.BatchNorm1d(8))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(20, 12)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert not gathered


def test_an_empty_batch(gathered: list[str]) -> None:
    ours, _, x = build("conv2d")
    ours[1].impl = "cpu"
    before = copy.deepcopy(ours.state_dict())
    y = ours(x[:0])
    y.sum().backward()
    assert y.shape == (0, 30, 4, 4)
    assert gathered
    before["1.num_batches_tracked"] += 1
    torch.testing.assert_close(ours.state_dict(), before)


def test_gathers_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = conv_moments.MOMENTS
    monkeypatch.setattr(conv_moments, "MOMENTS", lambda *args: (calls.append(True), real(*args))[1])

    def gathers(block: nn.Module, x: torch.Tensor) -> bool:
        calls.clear()
        block(x)
        return bool(calls)

    def layers(impl: str = "cpu", **conv: Any) -> nn.Module:
        conv = {"kernel_size": 1, "impl": impl, **conv}
        return gencore.nn.ConvNormAct(gencore.nn.Conv2d(8, 16, **conv), gencore.nn.BatchNorm2d(16))

    x = torch.randn(16, 8, 32, 32)
    last = x.to(memory_format=torch.channels_last)
    assert gathers(layers(), last)
    assert not gathers(layers(), last[:15])  # PyTorch's batch norm
    assert gathers(layers(), x)
    large = torch.randn(17, 8, 100, 100)
    wide = gencore.nn.ConvNormAct(gencore.nn.Conv2d(16, 16, 3, impl="cpu"), gencore.nn.BatchNorm2d(16))
    assert not gathers(wide, torch.randn(17, 16, 100, 100))  # minimal filtering
    assert gathers(layers().bfloat16(), large.bfloat16())
    assert not gathers(layers("auto"), last)  # 2 million products: PyTorch's convolution
    assert not gathers(layers("reference"), last)
    assert not gathers(layers(groups=2), last)
    assert not gathers(layers(activation="relu"), last)
    assert not gathers(layers().half(), last.half())
    with gencore.backend("reference"):
        assert not gathers(layers("auto"), last)
    evaluation = layers().eval()
    assert not gathers(evaluation, last)
    evaluation[1].running_mean = evaluation[1].running_var = None  # then the batch's are used all the same
    assert gathers(evaluation, last)
    synchronised = gencore.nn.ConvNormAct(layers()[0], gencore.nn.SyncBatchNorm(16))
    assert not gathers(synchronised, last)


def test_who_watches_the_layers_sees_what_lies_between(gathered: list[str]) -> None:
    ours, theirs, x = build("conv2d")
    seen: list[torch.Tensor] = []
    handles = [
        ours[0].register_forward_hook(lambda _, __, y: seen.append(y)),
        ours[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])),
        ours[1].register_full_backward_hook(lambda _, grad_x, __: seen.append(grad_x[0])),
        nn.modules.module.register_module_forward_hook(lambda *_: None),
    ]
    for i in range(len(handles)):
        ours(x).sum().backward()
        handles[i].remove()
    assert not gathered
    assert len(seen) == 3 + 2 + 1
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert len(gathered) == 1
    ours[0].forward = lambda x: theirs[0](2 * x)
    ours(x)
    assert len(gathered) == 1


def test_a_parametrised_weight_is_computed_once(gathered: list[str]) -> None:
    """Spectral normalisation takes a step of its power iteration at each reading of the weight."""
    ours, theirs, x = build("conv2d")
    for model in (ours, theirs):
        torch.manual_seed(0)
        nn.utils.parametrizations.spectral_norm(model[0])
        model(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-5)
    assert gathered


def test_a_weight_in_channels_last_gathers_too() -> None:
    """It turns the result, whatever the input's layout."""
    x, weight = torch.randn(16, 8, 32, 32), torch.randn(32, 8, 3, 3)
    y, moments = conv_moments.conv_moments("conv2d", x, weight, None, 1, 1, 1, 1, impl="cpu")
    assert moments is not None
    turned, moments = conv_moments.conv_moments(
        "conv2d", x, weight.contiguous(memory_format=torch.channels_last), None, 1, 1, 1, 1, impl="cpu"
    )
    assert turned.is_contiguous(memory_format=torch.channels_last)
    assert moments is not None
    torch.testing.assert_close(turned, y)
    torch.testing.assert_close(moments[0], y.mean([0, 2, 3]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moments[1], y.var([0, 2, 3], correction=0), rtol=1e-4, atol=1e-4)
