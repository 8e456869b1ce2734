"""``gencore.freeze``: results stay what they are, and so does the way in which changes of weights are noticed."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import gencore
import gencore.functional as F
from gencore.extension import EXTENSION
from gencore.ops import conv_packing, conv_replay

pytestmark = pytest.mark.skipif(not EXTENSION.loaded, reason="the C++ extension is not built")


def _layer(channels: int = 32) -> gencore.nn.Conv2d:
    torch.manual_seed(0)
    return gencore.nn.Conv2d(channels, channels, 3, padding=1, impl="cpu")


def _expected(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)


def test_results_keep_their_bits_and_the_model_evaluates() -> None:
    model = gencore.create_model("dcgan_32")
    z = torch.randn(2, 100)
    with torch.no_grad():
        before = model.eval()(z)
        model.train()
        assert gencore.freeze(model) is model
        assert not model.training
        for _ in range(2):
            assert torch.equal(model(z), before)
        assert gencore.unfreeze(model) is model
        assert torch.equal(model(z), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.detach().add_(1),
        lambda layer: layer.weight.detach()[3, 1, 0].mul_(2),  # few elements, but counted
        lambda layer: layer.load_state_dict({k: v * 2 for k, v in layer.state_dict().items()}),
        lambda layer: layer.weight.data.mul_(0.5),  # not counted, but everywhere
        lambda layer: layer.half().float(),
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach() - 1)),
        lambda layer: setattr(layer.weight, "data", torch.randn_like(layer.weight)),
        lambda layer: layer.to(memory_format=torch.channels_last),
        lambda layer: layer.weight.numpy(force=True).__imul__(-0.125),
    ],
    ids=["add_", "row", "load", "data", "half", "replaced", "swapped", "layout", "numpy"],
)
def test_changes_are_noticed(change: Callable[[nn.Conv2d], object]) -> None:
    layer, x = gencore.freeze(_layer()), torch.randn(1, 32, 6, 6)
    with torch.no_grad():
        layer(x)
        change(layer)
        for _ in range(2):
            torch.testing.assert_close(layer(x), _expected(layer, x), rtol=1e-4, atol=1e-4)


def test_few_elements_through_data_are_noticed_when_frozen_again() -> None:
    layer, x = gencore.freeze(_layer()), torch.randn(1, 32, 6, 6)
    with torch.no_grad():
        stale = layer(x)
        layer.weight.data.view(-1)[17:18].add_(100)
        assert torch.equal(layer(x), stale)  # the price, as documented
        torch.testing.assert_close(gencore.freeze(layer)(x), _expected(layer, x), rtol=1e-4, atol=1e-4)
        layer.weight.data.view(-1)[17:18].add_(100)
        torch.testing.assert_close(gencore.unfreeze(layer)(x), _expected(layer, x), rtol=1e-4, atol=1e-4)


def test_tensors_without_a_counter_are_hashed_whole() -> None:
    with torch.inference_mode():
        layer, x = gencore.freeze(_layer()), torch.randn(1, 32, 6, 6)
        layer(x)
        layer.weight.view(-1)[17:18].add_(100)
        torch.testing.assert_close(layer(x), _expected(layer, x), rtol=1e-4, atol=1e-4)


def test_a_copy_is_not_frozen_and_nothing_is_left_of_a_model_that_is_gone() -> None:
    held = len(conv_packing._at_rest)
    layer, x = gencore.freeze(_layer()), torch.randn(1, 32, 6, 6)
    assert len(conv_packing._at_rest) == held + 2
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other(x)
        other.weight.data.view(-1)[17:18].add_(100)
        torch.testing.assert_close(other(x), _expected(other, x), rtol=1e-4, atol=1e-4)
    del layer, other
    assert len(conv_packing._at_rest) == held


def test_gradients_and_training_go_on() -> None:
    layer, x = gencore.freeze(_layer()), torch.randn(2, 32, 6, 6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        twin = copy.deepcopy(layer)
        torch.testing.assert_close(layer(x), _expected(twin, x), rtol=1e-4, atol=1e-4)
        layer(x).square().sum().backward()
        _expected(twin, x).square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, twin.weight.grad, rtol=1e-3, atol=1e-2)
        optimizer.step()
        optimizer.zero_grad()


def test_what_is_kept_of_a_weight_follows_it() -> None:
    made = []

    def make(a: Tensor, b: Tensor | None, factor: float) -> Tensor:
        made.append(factor)
        return a * factor if b is None else a * factor + b

    a, b = torch.ones(3), torch.ones(3)
    assert conv_packing.kept(make, a, b, 2.0) is conv_packing.kept(make, a, b, 2.0)
    assert len(made) == 1
    b.data[1] = 5
    assert conv_packing.kept(make, a, b, 2.0).tolist() == [3, 7, 3]
    assert conv_packing.kept(make, a, b, 3.0).tolist() == [4, 8, 4]
    assert conv_packing.kept(make, a, None, 3.0).tolist() == [3, 3, 3]
    a.requires_grad_()
    conv_packing.kept(make, a, b, 3.0).sum().backward()
    assert a.grad is not None
    held = len(conv_packing._made)
    del b
    assert len(conv_packing._made) == held - 1


def test_modulated_convolution_of_a_frozen_weight() -> None:
    torch.manual_seed(0)
    weight, x, style = torch.randn(32, 32, 3, 3), torch.randn(2, 32, 8, 8), torch.randn(2, 32)
    holder = nn.Module()
    holder.register_buffer("weight", weight)
    gencore.freeze(holder)
    for change in (lambda: None, lambda: weight.add_(0.5), lambda: weight.data.mul_(2)):
        change()
        ours = F.modulated_conv2d(x, weight, style, padding=1, impl="cpu")
        exact = F.modulated_conv2d(x.double(), weight.double(), style.double(), padding=1, impl="reference")
        torch.testing.assert_close(ours, exact.float(), rtol=1e-4, atol=1e-4)


# --- calls that are noted --------------------------------------------------------------------------------------------


def _block() -> gencore.nn.ConvNormAct:
    torch.manual_seed(0)
    block = gencore.nn.ConvNormAct(
        gencore.nn.Conv2d(32, 40, 3, padding=1, impl="cpu"),
        gencore.nn.BatchNorm2d(40, activation="leaky_relu", negative_slope=0.3),
    )
    block[1].running_mean.normal_()
    block[1].running_var.uniform_(0.5, 2)
    return gencore.freeze(block)


def _in_sequence(block: gencore.nn.ConvNormAct, x: Tensor) -> Tensor:
    """By PyTorch."""
    conv, norm = block[0], block[1]
    y = nn.functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    y = nn.functional.batch_norm(
        y, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, 0, norm.eps
    )
    return nn.functional.leaky_relu(y, norm.negative_slope) if norm.activation == "leaky_relu" else y.relu()


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each folded call was found among those that were noted."""
    found = []

    def recall(*args: object) -> Tensor | None:
        y = conv_replay.recall(*args)  # type: ignore[arg-type]
        found.append(y is not None)
        return y

    monkeypatch.setattr("gencore.nn.block.recall", recall)
    return found


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_second_call_is_replayed_with_the_same_bits(layout: torch.memory_format, replayed: list[bool]) -> None:
    block, x = _block(), torch.randn(1, 32, 6, 6).to(memory_format=layout)
    with torch.no_grad():
        first, second = block(x), block(x)
        assert replayed == [False, True]
        assert torch.equal(first, second)
        assert first.stride() == second.stride()
        torch.testing.assert_close(second, _in_sequence(block, x), rtol=1e-4, atol=1e-4)
        other = torch.randn_like(x)
        torch.testing.assert_close(block(other), _in_sequence(block, other), rtol=1e-4, atol=1e-4)
        assert block(torch.randn(2, 32, 5, 4)).shape == (2, 40, 5, 4)
        assert replayed == [False, True, True, False]
    gencore.unfreeze(block)
    with torch.no_grad():
        assert torch.equal(block(x), first)
    assert not replayed[-1]


@pytest.mark.parametrize(
    "change",
    [
        lambda conv, norm: conv.weight.detach().view(-1)[17:18].add_(50),
        lambda conv, norm: conv.bias.data.add_(1),
        lambda conv, norm: norm.weight.data.mul_(2),
        lambda conv, norm: norm.bias.detach()[3].add_(1),
        lambda conv, norm: norm.running_mean.add_(1),
        lambda conv, norm: norm.running_var.data.mul_(2),
        lambda conv, norm: setattr(norm, "running_var", norm.running_var.clone()[:] * 3),
        lambda conv, norm: setattr(norm, "bias", nn.Parameter(torch.ones(40))),
        lambda conv, norm: setattr(norm, "eps", 1.0),
        lambda conv, norm: setattr(norm, "activation", "relu"),
        lambda conv, norm: setattr(norm, "negative_slope", 0.1),
        lambda conv, norm: setattr(conv, "padding", (0, 1)),
        lambda conv, norm: setattr(conv, "stride", [2, 1]),
        lambda conv, norm: norm.train(),
        lambda conv, norm: norm.register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
    ],
)
def test_whatever_a_noted_call_depends_on_is_noticed(
    change: Callable[[nn.Conv2d, nn.BatchNorm2d], object], replayed: list[bool]
) -> None:
    block, x = _block(), torch.randn(2, 32, 6, 6)
    with torch.no_grad():
        before = block(x), block(x)
        assert replayed == [False, True]
        change(block[0], block[1])
        expected = _in_sequence(copy.deepcopy(block), x)
        after = block(x)
        if block[1]._forward_pre_hooks:
            expected = copy.deepcopy(block[1])(nn.functional.conv2d(x, block[0].weight, block[0].bias, 1, 1))
        assert not any(replayed[2:])
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
        assert after.shape != before[0].shape or not torch.allclose(after, before[0])


def test_weights_that_are_swapped_out_and_in_again(replayed: list[bool]) -> None:
    """As an average of weights is for an evaluation, past the version counters: panels of either stay right."""
    block = _block()
    images = torch.randn(1, 32, 6, 6), torch.randn(1, 32, 8, 8)
    with torch.no_grad():
        expected = [block(x) for x in images]
        weights = block[0].weight.data, torch.randn_like(block[0].weight)
        block[0].weight.data = weights[1]
        torch.testing.assert_close(block(images[0]), _in_sequence(block, images[0]), rtol=1e-4, atol=1e-4)
        block[0].weight.data = weights[0]
        assert torch.equal(block(images[1]), expected[1])
        assert torch.equal(block(images[0]), expected[0])
    assert replayed == [False, False, False, True, False]


def test_another_tensor_is_noticed_though_it_looks_the_same() -> None:
    """Where the places that are looked at agree, and the version counters."""
    block = gencore.freeze(
        gencore.nn.ConvNormAct(gencore.nn.Conv2d(16, 4096, 1, impl="cpu"), gencore.nn.BatchNorm2d(4096))
    )
    x = torch.randn(1, 16, 2, 2)
    with torch.no_grad():
        before = block(x)
        mean = torch.zeros(4096).zero_()
        mean.numpy()[17] = 1
        assert mean._version == block[1].running_mean._version
        block[1].running_mean = mean
        torch.testing.assert_close(block(x)[0, 17], before[0, 17] - (1 + 1e-5) ** -0.5)


def test_circumstances_are_noticed(replayed: list[bool]) -> None:
    block, x = _block(), torch.randn(1, 32, 32, 32)
    with torch.no_grad():
        y = block(x)
        assert torch.equal(block(x, torch.ones_like(y)) > y - 1, torch.ones_like(y, dtype=torch.bool))
        assert block(x, output_size=None).shape == y.shape
        with torch.autocast("cpu", torch.bfloat16):
            assert block(x).dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match="dtype"):
            block(x.double())
        switch = torch.backends.mkldnn.conv
        exact = switch.fp32_precision
        try:
            switch.fp32_precision = "tf32"
            assert not torch.equal(block(x), y)  # larger tiles
        finally:
            switch.fp32_precision = exact
        assert torch.equal(block(x), y)
    assert block(x).requires_grad
    block[0].impl = "auto"
    with torch.no_grad():
        block(x)
        assert torch.equal(block(x), y)
        assert replayed[-1]
        with gencore.backend("reference"):
            torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-4)
            assert not replayed[-1]


def test_an_infinity_reaches_what_it_should(replayed: list[bool]) -> None:
    block, x = _block(), torch.randn(1, 32, 16, 16)
    with torch.no_grad():
        block(x)
        x[0, 3, 0, 0] = float("inf")
        assert torch.equal(block(x).isfinite(), _in_sequence(block, x).isfinite())
    assert replayed == [False, False]


def test_notes_are_few_and_go_with_the_weight() -> None:
    block = _block()
    with torch.no_grad():
        for side in range(1, 30):
            block(torch.randn(1, 32, side, side))
    calls = conv_packing.calls_of(block[0].weight)
    assert calls is not None
    assert 0 < len(calls) <= conv_replay._MOST_CALLS
    weight, held = weakref.ref(block[0].weight), len(conv_packing._at_rest)
    pickle.loads(pickle.dumps(block))
    del block, calls
    assert weight() is None
    assert len(conv_packing._at_rest) == held - 7  # two of the convolution, five of the norm


def test_threads_share_a_noted_call() -> None:
    block, images = _block(), torch.randn(8, 1, 32, 8, 8)
    with torch.no_grad():
        expected = [block(x) for x in images]

    def draw(x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [block(x) for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        for y, found in zip(expected, pool.map(draw, images), strict=True):
            assert all(torch.equal(y, other) for other in found)
