"""What only a GPU can show about a launch; the generic tests run there as well, with the targets ``*_cuda``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gencore import functional as F

pytestmark = pytest.mark.gpu


@pytest.fixture
def _synchronising_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def _step(x: Tensor, c: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = F.batch_norm_act(x, c, c, c, c, training=False, activation="silu", impl="triton")
    z, kl = F.reparameterize_kl(y.flatten(1), y.flatten(1), sample=False, impl="triton")
    return [z, kl, *torch.autograd.grad(z.sum() + kl.sum(), x)]


@pytest.mark.usefixtures("_synchronising_is_an_error")
def test_no_op_waits_for_the_device() -> None:
    x, c = torch.randn(8, 4, 6, 6, device="cuda"), torch.rand(4, device="cuda") + 0.5
    _step(x, c)
    F.reparameterize_kl(x.flatten(1), x.flatten(1), impl="triton")


def test_a_step_can_be_captured_in_a_graph() -> None:
    x, c = torch.randn(8, 4, 6, 6, device="cuda"), torch.rand(4, device="cuda") + 0.5
    wanted = _step(x, c)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        _step(x, c)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _step(x, c)
    graph.replay()
    for a, b in zip(captured, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def _normalise(weights: list[Tensor], vectors: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    us, vs = [u.clone() for u, _ in vectors], [v.clone() for _, v in vectors]
    normal, sigmas = F.spectral_norm_list(weights, us, vs, impl="triton")
    return [*normal, *sigmas, *us, *vs, *torch.autograd.grad(sum((x * x).sum() for x in normal), weights)]


def test_all_programs_of_spectral_norm_run_together() -> None:
    """Many layers, some of several tiles a program; the same bits each time, and in a captured graph."""
    shapes = [(1, 3), (64, 3, 3, 3), *[(512, 512, 3, 3)] * 8, *[(128, 64, 3, 3)] * 40, (2048, 4096)]
    weights = [torch.randn(shape, device="cuda").requires_grad_() for shape in shapes]
    vectors = [
        (torch.randn(w.shape[0], device="cuda"), torch.randn(w.numel() // w.shape[0], device="cuda")) for w in weights
    ]
    wanted = _normalise(weights, vectors)
    reference = F.spectral_norm_list(
        weights, [u.clone() for u, _ in vectors], [v.clone() for _, v in vectors], impl="reference"
    )
    for a, b in zip(wanted, [*reference[0], *reference[1]], strict=False):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for _ in range(50):
        assert all(torch.equal(a, b) for a, b in zip(_normalise(weights, vectors), wanted, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _normalise(weights, vectors)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, wanted, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_launches_follow_the_tensors_device() -> None:
    x = torch.randn(4, 64, device="cuda:1")
    z, kl = F.reparameterize_kl(x, x, impl="triton")
    assert z.device == kl.device == x.device
