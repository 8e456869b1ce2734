"""Spectral normalisation as a parametrisation: PyTorch's buffers and results, batches of layers, loaders."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as torch_parametrizations

import gencore.functional as F
from gencore.extension import EXTENSION
from gencore.nn.utils.parametrizations import load_spectral_norm, spectral_norm, spectral_norm_model

LAYERS: dict[str, Any] = {
    "conv": lambda: nn.Conv2d(5, 7, 3),
    "transposed": lambda: nn.ConvTranspose2d(5, 7, 4, stride=2),
    "linear": lambda: nn.Linear(6, 9),
    "embedding": lambda: nn.Embedding(11, 4),
    "norm": lambda: nn.LayerNorm(8),
}


def twins(make: Any) -> tuple[nn.Module, nn.Module]:
    """A layer with gencore's and one with PyTorch's spectral norm, from the same random numbers."""
    torch.manual_seed(3)
    ours = spectral_norm(make())
    torch.manual_seed(3)
    return ours, torch_parametrizations.spectral_norm(make())


def network() -> nn.Sequential:
    layers = [
        spectral_norm(nn.Conv2d(3, 8, 3, padding=1)),
        nn.ReLU(),
        spectral_norm(nn.Conv2d(8, 6, 4, stride=2, padding=1)),
        nn.ReLU(),
        spectral_norm(nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1)),
        nn.Flatten(),
        spectral_norm(nn.Linear(5 * 8 * 8, 2)),
    ]
    return nn.Sequential(*layers)


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", LAYERS)
def test_same_random_numbers_buffers_and_weights_as_pytorch(kind: str) -> None:
    ours, theirs = twins(LAYERS[kind])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for step in range(3):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, msg=lambda m, n=name, s=step: f"{n}, step {s}: {m}")
        torch.testing.assert_close(ours.weight, theirs.weight)
    grads = [torch.autograd.grad(m.weight.square().sum() + m.weight.sum(), m.parametrizations.weight.original)[0]
             for m in (ours, theirs)]  # fmt: skip
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.weight, ours.weight, rtol=0, atol=0)


def test_state_dict_goes_both_ways() -> None:
    ours, theirs = twins(LAYERS["conv"])
    theirs.weight  # noqa: B018  a reading iterates
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.eval().weight, theirs.eval().weight)
    ours.train().weight  # noqa: B018
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval().weight, theirs.eval().weight)


def test_two_forwards_before_one_backward() -> None:
    results = []
    for layer in twins(LAYERS["conv"]):
        torch.manual_seed(1)
        x, y = torch.randn(2, 2, 5, 6, 6).unbind()
        loss = layer(x).square().sum() - 0.5 * layer(y).square().sum()
        for buffer in layer.buffers():  # what a broadcast of DistributedDataParallel does
            buffer.copy_(buffer.clone())
        loss.backward()
        results.append(gradients(layer))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("nested", [False, True])
def test_two_batches_move_u_and_v_once(nested: bool) -> None:
    torch.manual_seed(0)
    once = spectral_norm_model(network())
    inner = copy.deepcopy(once)
    outer = spectral_norm_model(nn.Sequential(inner) if nested else inner)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(outer(x), once(x), rtol=0, atol=0)
    torch.testing.assert_close(inner(x), once(x))  # each layer for itself, where the network has a network around it
    for a, b in zip(once.buffers(), inner.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_batch_of_layers_is_each_layer() -> None:
    torch.manual_seed(0)
    single = network()
    batched = spectral_norm_model(copy.deepcopy(single))
    assert list(single.state_dict()) == list(batched.state_dict())
    x = torch.randn(4, 3, 8, 8)
    for _ in range(2):
        for net in (single, batched):
            (net(x).square().mean() - net(-x).mean()).backward()
    for a, b in zip([*single.buffers(), *gradients(single)], [*batched.buffers(), *gradients(batched)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single.eval()(x), batched.eval()(x))


def test_a_batch_survives_copies_and_errors() -> None:
    net = spectral_norm_model(network())
    copied = copy.deepcopy(net)
    before = [b.clone() for b in net.buffers()]
    copied(torch.randn(2, 3, 8, 8))
    for a, b in zip(before, net.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        net(torch.randn(2, 4, 8, 8))
    weight = net[0].weight
    with torch.no_grad():
        net[0].parametrizations.weight.original.mul_(3).add_(1)
    assert not torch.allclose(net[0].weight, weight), "a weight of a forward that failed is still in use"
    torch.save(net.state_dict(), io.BytesIO())


def test_a_batch_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="no layer of the network has"):
        spectral_norm_model(nn.Sequential(nn.Linear(2, 2)))
    mixed = nn.Sequential(spectral_norm(nn.Linear(3, 3)), spectral_norm(nn.Linear(3, 3), n_power_iterations=2))
    with pytest.raises(ValueError, match="the same settings"):
        spectral_norm_model(mixed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated.*")
def test_compiles_with_two_forwards() -> None:
    torch.manual_seed(0)
    eager = spectral_norm_model(network())
    graph = copy.deepcopy(eager)

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        return net(x).square().mean() - net(-x).mean()

    x = torch.randn(4, 3, 8, 8)
    torch.compile(loss, backend="aot_eager", fullgraph=True)(graph, x).backward()
    loss(eager, x).backward()
    for a, b in zip([*graph.buffers(), *gradients(graph)], [*eager.buffers(), *gradients(eager)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def biggan_weight(weight: Tensor, u0: Tensor) -> tuple[Tensor, Tensor]:
    """W / sigma as BigGAN's code has it, and its next u0 ``[1, out]``."""
    matrix = weight.flatten(1)
    v = torch.nn.functional.normalize(u0 @ matrix)
    u = torch.nn.functional.normalize(v @ matrix.T)
    return weight / (v @ matrix.T @ u.T).squeeze(), u


def test_biggan_convention_and_loader() -> None:
    weight, u0, bias = torch.randn(7, 5, 3, 3), torch.nn.functional.normalize(torch.randn(1, 7)), torch.randn(7)
    checkpoint = {"a.weight": weight, "a.u0": u0, "a.sv0": torch.ones(1), "a.bias": bias}
    wanted, u1 = biggan_weight(weight, u0)
    layer = spectral_norm(nn.Conv2d(5, 7, 3), convention="biggan")
    load_spectral_norm(layer, checkpoint, "a.")
    torch.testing.assert_close(layer.bias, bias)
    layer.eval()
    for _ in range(2):  # evaluation does not move u0
        torch.testing.assert_close(layer.weight, wanted)
    layer.train()
    torch.testing.assert_close(layer.weight, wanted)
    torch.testing.assert_close(layer.weight, biggan_weight(weight, u1)[0])
    torchs = spectral_norm(nn.Conv2d(5, 7, 3))
    load_spectral_norm(torchs, checkpoint, "a.")
    torch.testing.assert_close(torchs.eval().weight, wanted)
    plain = nn.Conv2d(5, 7, 3)
    load_spectral_norm(plain, checkpoint, "a.")
    torch.testing.assert_close(plain.weight, wanted)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", [LAYERS["conv"], LAYERS["transposed"]])
def test_loads_pytorchs_former_and_present_format(make: Any) -> None:
    former = nn.utils.spectral_norm(make())
    former(torch.randn(1, 5, 6, 6))
    former.eval()(torch.randn(1, 5, 6, 6))
    present = torch_parametrizations.spectral_norm(make()).eval()
    for source in (former, present):
        for target in (spectral_norm(make()).eval(), make()):
            load_spectral_norm(target, {f"x.{k}": v for k, v in source.state_dict().items()}, "x.")
            torch.testing.assert_close(target.weight, source.weight)
    with pytest.raises(KeyError, match=r"y\.weight_orig"):
        load_spectral_norm(make(), former.state_dict(), "y.")
    with pytest.raises(RuntimeError, match="must have shape"):
        load_spectral_norm(nn.Linear(3, 4), former.state_dict())


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("weight_u", torch.ones(1), RuntimeError, r"weight's u must have shape \(4,\), got \(1,\)"),
        ("weight_v", torch.ones(5), RuntimeError, r"weight's v must have shape \(3,\), got \(5,\)"),
        ("bias", torch.ones(1), RuntimeError, r"bias must have shape \(4,\), got \(1,\)"),
        ("bias", None, KeyError, "the checkpoint has no bias"),
    ],
)
def test_a_checkpoint_that_does_not_fit_loads_nothing(
    key: str, value: Tensor | None, error: type[Exception], message: str, normalised: bool
) -> None:
    state = {"weight_orig": torch.randn(4, 3), "weight_u": torch.ones(4), "weight_v": torch.ones(3)}
    state["bias"] = torch.ones(4)
    if value is None:
        del state[key]
    else:
        state[key] = value
    layer = spectral_norm(nn.Linear(3, 4)) if normalised else nn.Linear(3, 4)
    before = {name: x.clone() for name, x in layer.state_dict().items()}
    with pytest.raises(error, match=message):
        load_spectral_norm(layer, state)
    for name, x in layer.state_dict().items():
        assert torch.equal(x, before[name])


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "n_power_iterations must be positive", {"n_power_iterations": 0}),
        (TypeError, "n_power_iterations must be a whole number, got 1.5", {"n_power_iterations": 1.5}),
        (ValueError, "eps must be positive", {"eps": 0.0}),
        (ValueError, "eps must be finite", {"eps": float("inf")}),
        (ValueError, "no parameter or buffer", {"name": "kernel"}),
        (IndexError, "dim must be between -2 and 1", {"dim": 2}),
        (ValueError, "convention must be one of", {"convention": "sagan"}),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        spectral_norm(nn.Linear(3, 4), **arguments)


def test_zero_weights_stay_finite() -> None:
    """PyTorch's own divides zero by zero; a weight that leaves zero later is normalised again."""
    layer = nn.Linear(3, 4)
    nn.init.zeros_(layer.weight)
    spectral_norm(layer)
    assert torch.equal(layer.weight, torch.zeros(4, 3))
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    for _ in range(50):
        weight = layer.weight
    torch.testing.assert_close(torch.linalg.matrix_norm(weight, 2), torch.tensor(1.0), rtol=1e-3, atol=0)


@pytest.mark.skipif(not EXTENSION.loaded, reason="the C++ extension is not built")
def test_kernel_writes_what_is_wanted_and_refuses_what_does_not_fit() -> None:
    """An empty tensor stands for the gradient of a W / sigma that is not wanted; other sizes are refused."""
    weight, kernels = torch.randn(4, 6), torch.ops.gencore_c
    buffers = [torch.randn(8)[::2], torch.randn(6)]
    normal, sigma, vectors = kernels.spectral_norm([weight], buffers, 1, 1e-12, [0], True, [False])
    assert normal == []
    u, v = vectors.split([4, 6])
    torch.testing.assert_close(sigma[0], u @ weight @ v)
    kernels.spectral_norm_store(vectors, buffers)
    torch.testing.assert_close(torch.cat(buffers), vectors, rtol=0, atol=0)
    grad = torch.full_like(weight, torch.nan)
    kernels.spectral_norm_backward([torch.empty(0)], torch.tensor([3.0]), [weight], sigma, vectors, 1e-12, [0], [grad])
    torch.testing.assert_close(grad, 3 * torch.outer(u, v))
    with pytest.raises(RuntimeError, match="vectors must have 10 elements, got 9"):
        kernels.spectral_norm([weight], [buffers[0], torch.randn(5)], 1, 1e-12, [0], True, [True])
    with pytest.raises(RuntimeError, match="vectors must have 9 elements, got 10"):
        kernels.spectral_norm_store(vectors, [buffers[0], torch.randn(5)])
    with pytest.raises(RuntimeError, match="buffers must be vectors of the compute dtype"):
        kernels.spectral_norm([weight], [buffers[0], torch.randn(6).double()], 1, 1e-12, [0], True, [True])
    rest = (torch.tensor([3.0]), [weight], sigma, vectors, 1e-12, [0])
    with pytest.raises(RuntimeError, match="grad_weights must have 24 elements, got 0"):
        kernels.spectral_norm_backward([weight], *rest, [torch.empty(0)])


def test_functional_updates_only_the_buffers() -> None:
    weight, u, v = torch.randn(4, 6), torch.randn(4), torch.randn(6)
    before = [x.clone() for x in (weight, u, v)]
    F.spectral_norm(weight, u, v, training=False)
    F.spectral_norm(weight, u, v, n_power_iterations=0)
    for a, b in zip((weight, u, v), before, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    F.spectral_norm(weight, u, v)
    assert not torch.equal(u, before[1])
    assert torch.equal(weight, before[0])
