"""What ``self_attention`` promises beyond the generic tests: memory, exact zeros, feature maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gencore import functional as F
from gencore.dispatch import OPS
from tests.accuracy import error

KERNELS = [name for name in OPS["self_attention"].implementations if name == "cpu"]


@pytest.mark.parametrize("impl", KERNELS)
def test_no_matrix_is_kept(impl: str) -> None:
    n, m = 500, 400
    query, key, value = (torch.randn(2, count, 4).requires_grad_() for count in (n, m, m))
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        F.self_attention(query, key, value, impl=impl).sum()
    assert kept
    assert max(kept) <= 2 * max(n, m) * 4


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_key_with_all_the_weight_gives_no_gradient_to_the_scores(impl: str, dtype: torch.dtype) -> None:
    """One key, or one whose score is far above the others': softmax is constant, and its gradient 0 to the bit."""
    torch.manual_seed(0)
    value = torch.randn(1, 3, 37, dtype=dtype)
    query = torch.randn(1, 5, 2, dtype=dtype).abs().requires_grad_()
    for key in (torch.ones(1, 1, 2, dtype=dtype), torch.tensor([[[-9e3, -9e3], [9e3, 9e3], [0, 0]]], dtype=dtype)):
        key.requires_grad_()
        out = F.self_attention(query, key, value[:, : key.shape[1]], impl=impl)
        for grad in torch.autograd.grad(out, (query, key), torch.randn_like(out)):
            assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("impl", KERNELS)
def test_sharp_weights_do_not_blur_the_gradient_of_queries(impl: str) -> None:
    """Where one key has most of the weight, D and delta cancel; without the correction dQ errs 2.7 times PyTorch's."""
    torch.manual_seed(0)
    ours, theirs = [], []
    for _ in range(4):
        query, key, value = (torch.randn(1, 512, n).requires_grad_() for n in (8, 8, 64))
        grad = torch.randn(1, 512, 64)
        exact, torchs = (
            torch.autograd.grad(F.self_attention(*tensors, scale=4.0, impl="reference"), tensors[0], grad.to(dtype))[0]
            for dtype in (torch.float64, torch.float32)
            for tensors in [[x.detach().to(dtype).requires_grad_() for x in (query, key, value)]]
        )
        got = torch.autograd.grad(F.self_attention(query, key, value, scale=4.0, impl=impl), query, grad)[0]
        ours.append(error(got, exact))
        theirs.append(error(torchs, exact))
    assert sum(ours) < 1.5 * sum(theirs)


@pytest.mark.parametrize("impl", ["reference", *KERNELS])
def test_feature_maps_and_leading_dimensions(impl: str) -> None:
    query, key, value = (torch.randn(2, c, n) for c, n in ((3, 20), (3, 12), (5, 12)))
    out = F.self_attention(query.mT, key.mT, value.mT, impl=impl)
    dense = F.self_attention(query.mT.contiguous(), key.mT.contiguous(), value.mT.contiguous(), impl=impl)
    torch.testing.assert_close(out, dense)
    if impl != "reference":
        assert out.mT.is_contiguous(), "a feature map became a sequence"
        assert dense.is_contiguous()
    one = F.self_attention(query[0].mT, key[0].mT, value[0].mT, impl=impl)
    torch.testing.assert_close(one, dense[0])
    heads: Any = (x.mT.unsqueeze(0).expand(3, -1, -1, -1) for x in (query, key, value))
    torch.testing.assert_close(F.self_attention(*heads, impl=impl), dense.expand(3, -1, -1, -1))


@pytest.mark.parametrize("impl", ["reference", *KERNELS])
def test_infinite_scores(impl: str) -> None:
    """-inf takes a key out; a row of nothing else is NaN, as in PyTorch."""
    query, value = torch.ones(1, 2, 1), torch.arange(70.0).view(1, 70, 1)
    key = torch.full((1, 70, 1), -torch.inf)
    assert F.self_attention(query, key, value, impl=impl).isnan().all()
    key[:, 66] = 0.0
    torch.testing.assert_close(F.self_attention(query, key, value, impl=impl), torch.full((1, 2, 1), 66.0))


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("spread", [30.0, 1000.0])
def test_sharp_softmax(impl: str, spread: float) -> None:
    """Large scores: the result is as exact as PyTorch's. dQ and dK, differences of nearly equal numbers where one key
    has most of the weight, err more than its: delta is dO o, not the sum over the keys."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, n, c, generator=generator) for n, c in ((20, 4), (30, 4), (30, 5)))
    query *= spread / 2
    vector = torch.randn(2, 20, 5, generator=generator)

    def run(dtype: torch.dtype, function: Any) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (query, key, value)]
        out = function(*leaves)
        return [out, *torch.autograd.grad(out, leaves, vector.to(dtype))]

    def composite(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT, -1) @ v

    oracle = run(torch.float64, composite)
    ours = run(torch.float32, lambda *x: F.self_attention(*x, impl=impl))
    for i, (a, b, c) in enumerate(zip(ours, run(torch.float32, composite), oracle, strict=True)):
        slack = 2 if i in (0, 3) else 20
        assert (a - c).norm() <= slack * (b - c).norm() + 1e-6 * c.norm()
