"""Forwards with spectral norm that activation checkpointing repeats: u and v are those of that forward again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gencore.nn
from gencore.extension import EXTENSION
from gencore.nn.utils.parametrizations import spectral_norm, spectral_norm_model
from tests.test_spectral_norm_layers import gradients, network


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_checkpointing_gives_the_same_bits(reentrant: bool, batched: bool) -> None:
    torch.manual_seed(0)
    plain = network()
    again = copy.deepcopy(plain)
    if batched:
        spectral_norm_model(plain), spectral_norm_model(again)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    plain(x).square().sum().backward()

    class Saved(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    Saved(again)(x).square().sum().backward()
    for a, b in zip(gradients(plain), gradients(again), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for a, b in zip(plain.buffers(), again.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class Parts(nn.Module):
    """The network by its layers; ``stops`` are the lengths of the parts that are checkpointed, one inside another where
    they are nested."""

    def __init__(self, net: nn.Sequential, stops: tuple[int, ...], reentrant: bool, nested: bool = False) -> None:
        super().__init__()
        self.net, self.stops, self.reentrant, self.nested = net, stops, reentrant, nested
        net.forward = self.run  # hooks of the batch still run

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def run(self, x: Tensor) -> Tensor:
        layers = list(self.net)
        for stop in self.stops:
            part, layers = layers[:stop], layers[stop:]
            x = checkpoint(self.part(part), x, use_reentrant=self.reentrant)
        return nn.Sequential(*layers)(x)

    def part(self, layers: list[nn.Module]) -> Any:
        if self.nested:
            inner = nn.Sequential(*layers[1:])
            return lambda x: checkpoint(inner, layers[0](x), use_reentrant=self.reentrant).tanh()
        return nn.Sequential(*layers)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("batched", [None, "fold", "written"])
@pytest.mark.parametrize("kind", ["whole", "parts", "nested"])
@pytest.mark.parametrize("convention", ["torch", "biggan"])
def test_checkpointing_repeats_each_of_two_forwards(
    kind: str, batched: str | None, reentrant: bool, training: bool, convention: str
) -> None:
    """The second forward has moved u and v before the first one is repeated."""
    torch.manual_seed(0)
    layers = [gencore.nn.Conv2d(3, 4, 3), nn.Tanh(), gencore.nn.Conv2d(4, 4, 3), nn.Tanh(), gencore.nn.Conv2d(4, 2, 3)]
    plain = nn.Sequential(*(spectral_norm(m, convention=convention) if hasattr(m, "weight") else m for m in layers))
    plain.train(training)
    again = copy.deepcopy(plain)
    nets: list[nn.Module] = [plain, again]
    if batched:
        for net in nets:
            spectral_norm_model(net, fold=batched == "fold")
    if kind == "whole":
        run = lambda x: checkpoint(again, x, use_reentrant=reentrant)  # noqa: E731
        reference = plain
    else:
        stops = (2, 2) if kind == "parts" else (3,)
        run = Parts(again, stops, reentrant, kind == "nested")
        reference = Parts(plain, (), reentrant)
        if kind == "nested":
            plain.insert(3, nn.Tanh())
    x, y = torch.randn(2, 2, 3, 8, 8).requires_grad_().unbind()
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    found = []
    for net in (reference, run):
        x.grad = y.grad = None
        loss = net(x).square().sum() - net(y).sum()
        with torch.no_grad():
            net(y)
        loss.backward()
        found.append([x.grad, y.grad])
    for a, b in zip(
        [*found[0], *gradients(plain), *plain.buffers()], [*found[1], *gradients(again), *again.buffers()], strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batched", [False, True])
def test_checkpointing_and_a_penalty_on_the_gradient(batched: bool) -> None:
    torch.manual_seed(0)
    plain = network().double()
    again = copy.deepcopy(plain)
    if batched:
        spectral_norm_model(plain), spectral_norm_model(again)
    found = []
    for net in (plain, lambda x: checkpoint(again, x, use_reentrant=False)):
        x = torch.linspace(-1, 1, 384, dtype=torch.float64).view(2, 3, 8, 8).requires_grad_()
        real, fake = net(x), net(-x)
        (grad,) = torch.autograd.grad(real.square().sum(), x, create_graph=True)
        (grad.square().sum() + fake.sum()).backward()
        found.append(x.grad)
    for a, b in zip([found[0], *gradients(plain)], [found[1], *gradients(again)], strict=True):
        torch.testing.assert_close(a, b)


def test_checkpointing_refuses_another_forward_than_the_first() -> None:
    layer, calls = spectral_norm(nn.Linear(3, 3)), []

    def uneven(x: Tensor) -> Tensor:
        calls.append(None)
        for _ in calls:
            x = layer(x)
        return x

    y = checkpoint(uneven, torch.randn(2, 3, requires_grad=True), use_reentrant=True)
    with pytest.raises(RuntimeError, match="more calls than the first time"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated.*")
@pytest.mark.skipif(not EXTENSION.loaded, reason="a compiled reference is PyTorch's ops alone, which cannot refuse")
@pytest.mark.parametrize("outside", [False, True])
def test_compiled_and_checkpointed_is_refused(outside: bool) -> None:
    torch._dynamo.reset()
    net = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    if outside:
        compiled = torch.compile(net, backend="aot_eager")
        y = checkpoint(compiled, x, use_reentrant=False)
    else:
        y = torch.compile(lambda x: checkpoint(net, x, use_reentrant=False), backend="aot_eager")(x)
    with pytest.raises(RuntimeError, match=r"activation checkpointing repeats a forward that torch\.compile"):
        y.square().sum().backward()
