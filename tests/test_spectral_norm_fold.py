"""Networks whose layers multiply by 1 / sigma themselves: results and derivatives as with W / sigma written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import gencore
import gencore.nn
from gencore import losses
from gencore.extension import EXTENSION
from gencore.nn.utils.parametrizations import spectral_norm, spectral_norm_model, weight_and_scale

IMPLS = ["reference", *(["cpu"] if EXTENSION.loaded else [])]


@pytest.fixture(autouse=True, params=IMPLS)
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """What convolutions, linear layers and the power iteration run on."""
    with gencore.backend(request.param):
        yield request.param


class Network(nn.Module):
    """``[N, 3, 8, 8]`` -> ``[N, 2]``: every kind of layer, of gencore.nn and of torch.nn; one is used twice."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        normed = lambda layer: spectral_norm(layer, **options)  # noqa: E731
        self.first = normed(gencore.nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect", activation="tanh"))
        self.twice = normed(gencore.nn.Conv2d(8, 8, 3, padding=1, groups=2))
        self.torchs = normed(nn.Conv2d(8, 6, 4, stride=2, padding=1))
        self.up = normed(gencore.nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1, groups=2, activation="sigmoid"))
        self.embedding = normed(nn.Embedding(5, 6))
        self.line = normed(gencore.nn.Conv1d(4, 3, 3))
        self.hidden = normed(gencore.nn.Linear(3 * 62, 9, activation="tanh"))
        self.last = normed(gencore.nn.Linear(9, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.tanh(self.twice(self.twice(x, residual=x)))
        x = self.torchs(x) + self.embedding(torch.arange(len(x)))[:, :, None, None]
        return self.last(self.hidden(self.line(self.up(x).flatten(2)).flatten(1)))


def twins(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The network folding, and a copy of it that writes every W / sigma."""
    return spectral_norm_model(copy.deepcopy(network), fold=True), spectral_norm_model(network, fold=False)


def assert_same(a: Any, b: Any, **tolerance: float) -> None:
    torch.testing.assert_close(list(a), list(b), **(tolerance or {"rtol": 1e-9, "atol": 1e-11}))


def convolutions_fold(network: nn.Module) -> dict[str, bool]:
    """For each layer whether it is given a scale, in one forward."""
    seen: dict[str, bool] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda m, args, name=name: seen.update({name: weight_and_scale(m)[1] is not None})
        )
        for name, module in network.named_modules()
        if parametrize.is_parametrized(module)
    ]
    network(torch.randn(2, 3, 8, 8, dtype=next(network.parameters()).dtype))
    for hook in hooks:
        hook.remove()
    return seen


def test_gencores_layers_fold_and_others_do_not() -> None:
    own = {"first", "twice", "up", "line", "hidden", "last"}
    folding, writing = twins(Network())
    assert convolutions_fold(folding) == {n: n in own for n in (*own, "torchs", "embedding")}
    assert not any(convolutions_fold(writing).values())
    assert all(weight_and_scale(getattr(folding, name))[1] is None for name in own), "a scale outlived its forward"


@pytest.mark.parametrize("convention", ["torch", "biggan"])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_first_and_second_derivatives(training: bool, convention: str) -> None:
    """Two forwards before one backward, and a gradient penalty; then once more, from where u and v are by then."""
    torch.manual_seed(0)
    nets = twins(Network(convention=convention).double().train(training))
    for _ in range(2):
        x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
        found = []
        for net in nets:
            net.zero_grad()
            image = x.clone().requires_grad_()
            y = net(image)
            (grad,) = torch.autograd.grad(y.square().sum(), image, create_graph=True)
            loss = grad.square().sum() + y.sum() - net(-image).square().sum()
            loss.backward()
            found.append([y, grad, image.grad, *(p.grad for p in net.parameters())])
            with torch.no_grad():
                found[-1].append(net(x))
        assert_same(*found)
        assert list(nets[0].state_dict()) == list(nets[1].state_dict())
        assert_same(*(net.state_dict().values() for net in nets))


def test_a_frozen_weight_and_a_frozen_network() -> None:
    """Gradients of what is asked for, whatever else is frozen."""
    nets = twins(Network().double())
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    for frozen in (("twice",), [name for name, _ in nets[0].named_children()]):
        for net in nets:
            for name in frozen:
                getattr(net, name).requires_grad_(False)
        wanted = [[x, *(p for p in net.parameters() if p.requires_grad)] for net in nets]
        assert_same(*(torch.autograd.grad(net(x).square().sum(), w) for net, w in zip(nets, wanted, strict=True)))


def test_whoever_reads_the_weight_gets_the_normalised_one() -> None:
    """During a forward as outside of it, and without another iteration."""
    nets = twins(Network().double())
    read: list[list[Tensor]] = []
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for net in nets:
        weights: list[Tensor] = []
        net.first.register_forward_hook(lambda m, a, y, w=weights: w.extend((m.weight, m.weight)))
        net(x)
        original = net.first.parametrizations.weight.original
        read.append(
            [*weights, *torch.autograd.grad(weights[1].square().sum(), original), *net.buffers(), net.first.weight]
        )
    assert_same(*read)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    net, _ = twins(Network().double())
    again = copy.deepcopy(net)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    net(x).square().sum().backward()
    checkpoint(again, x, use_reentrant=reentrant).square().sum().backward()
    assert_same((p.grad for p in again.parameters()), (p.grad for p in net.parameters()))
    assert_same(again.buffers(), net.buffers())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated.*")
def test_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    eager, _ = twins(Network())
    graph = copy.deepcopy(eager)
    x = torch.randn(3, 3, 8, 8)
    loss = lambda net: net(x).square().mean() - net(-x).mean()  # noqa: E731
    torch.compile(loss, backend="aot_eager", fullgraph=True)(graph).backward()
    loss(eager).backward()
    for find in (lambda net: (p.grad for p in net.parameters()), lambda net: net.buffers()):
        assert_same(find(graph), find(eager), rtol=1e-5, atol=1e-6)
    assert not any(normal.shared is not None for normal in graph.modules() if hasattr(normal, "shared"))


def test_sixteen_bits_autocast_and_further_parametrisations_are_written() -> None:
    net = spectral_norm_model(Network())
    with torch.autocast("cpu", torch.bfloat16):
        assert not any(convolutions_fold(net).values())
    inner = spectral_norm_model(Network())
    with_autocast = torch.autocast("cpu", torch.bfloat16)(inner.forward)
    inner.forward = with_autocast
    assert not any(convolutions_fold(inner).values())
    parametrize.register_parametrization(net.last, "weight", nn.Identity())
    folded = convolutions_fold(net)
    assert folded["hidden"]
    assert not folded["last"]
    assert not any(convolutions_fold(net.bfloat16()).values())


def test_scales_of_a_failed_forward_are_forgotten() -> None:
    net = spectral_norm_model(Network())
    with pytest.raises(RuntimeError, match="channels"):
        net(torch.randn(2, 4, 8, 8))
    assert weight_and_scale(net.first)[1] is None


def test_weights_of_zero_stay_finite() -> None:
    """Where sigma is too small to divide by, W itself counts."""
    nets = twins(Network())
    for net in nets:
        nn.init.zeros_(net.first.parametrizations.weight.original)
        net(torch.ones(2, 3, 8, 8)).sum().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
    assert_same(*((p.grad for p in net.parameters()) for net in nets), rtol=1e-4, atol=1e-5)


def test_a_batch_norm_folded_into_the_convolution() -> None:
    """Both scales at once, and the bias of the convolution between them."""
    block = gencore.nn.ConvNormAct(
        spectral_norm(gencore.nn.Conv2d(3, 6, 3)), gencore.nn.BatchNorm2d(6, activation="leaky_relu")
    )
    nets = twins(block.double())
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    nets[0](x)
    nets[1](x)
    with torch.no_grad():
        assert_same(*([net.eval()(x)] for net in nets))


def test_weights_stay_packed(impl: str) -> None:
    """Power iterations do not change the weight that the kernels see; a step of the optimiser does."""
    if impl != "cpu":
        pytest.skip("PyTorch's kernels keep no packed weights")
    net = spectral_norm_model(
        nn.Sequential(spectral_norm(gencore.nn.Conv2d(4, 8, 3)), spectral_norm(gencore.nn.Conv2d(8, 8, 3)))
    )
    x = torch.randn(2, 4, 8, 8)

    def packed() -> int:
        with torch.profiler.profile() as profile:
            for _ in range(3):
                net(x)
        return sum(event.count for event in profile.key_averages() if event.key == "gencore_c::conv_pack")

    assert packed() == 2
    assert packed() == 0
    with torch.no_grad():
        net[0].parametrizations.weight.original.mul_(2)
    assert packed() == 1


@pytest.mark.parametrize("classes", [0, 3])
def test_discriminator_of_sngan(classes: int) -> None:
    """As a whole: hinge loss on two batches, and a penalty on the gradient."""
    torch.manual_seed(0)
    model = gencore.create_model("sngan_32", generator=(8, 8, 8, 8), discriminator=(8, 8, 8, 8), classes=classes)
    folding = model.discriminator.double()
    writing = copy.deepcopy(folding)
    writing._forward_pre_hooks.clear(), writing._forward_hooks.clear()
    spectral_norm_model(writing, fold=False)
    real, fake = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64).unbind()
    y = torch.arange(4) % 3 if classes else None
    found = []
    for net in (folding, writing):
        image = real.clone().requires_grad_()
        logits, others = net(image, y), net(fake, y)
        (grad,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
        (losses.hinge_discriminator(logits, others) + grad.square().sum()).backward()
        found.append([logits, others, grad, *(p.grad for p in net.parameters()), *net.state_dict().values()])
        with torch.no_grad():
            found[-1] += [net.eval()(fake, y), net.stages[0].conv1.weight]
    assert_same(*found)
