"""``gencore.freeze``: results stay what they are, and so does the way in which changes of weights are noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gencore
import gencore.functional as F
from gencore.extension import EXTENSION
from gencore.ops import conv_packing

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
