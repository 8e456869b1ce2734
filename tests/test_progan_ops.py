"""Pixel norm and minibatch stddev beyond the generic tests: large results, layouts, cancellation, bad raw calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gencore
from gencore import functional as F
from gencore.dispatch import EXTENSION

needs_extension = pytest.mark.skipif(not EXTENSION.loaded, reason="the C++ extension was not built")


@needs_extension
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_pixel_norm_of_what_is_written_past_the_caches(channels_last: bool) -> None:
    x = torch.randn(2, 32, 256, 272, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    results = []
    for impl in ("cpu", "reference"):
        leaf = x.detach().requires_grad_()
        y = F.pixel_norm(leaf, impl=impl)
        y.backward(x.sin())
        results.append((y.detach(), leaf.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@needs_extension
def test_auto_takes_the_kernels_of_any_size() -> None:
    assert gencore.explain(F.pixel_norm, torch.empty(8, 512)).chosen == "cpu"
    assert gencore.explain(F.pixel_norm, torch.empty(8, 512, 8, 8)).chosen == "cpu"
    assert gencore.explain(F.minibatch_stddev, torch.empty(4, 16, 4, 4)).chosen == "cpu"


@needs_extension
def test_minibatch_stddev_keeps_channels_last() -> None:
    x = torch.randn(4, 6, 5, 3).contiguous(memory_format=torch.channels_last)
    assert F.minibatch_stddev(x, impl="cpu").is_contiguous(memory_format=torch.channels_last)
    assert F.minibatch_stddev(x.contiguous(), impl="cpu").is_contiguous()


@needs_extension
def test_samples_that_nearly_agree() -> None:
    """The mean's rounding is then as large as the deviations from it; the gradient is not to see it."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(1, 8, 16, 16, generator=generator) + 3.0
    x = base + 1e-5 * torch.randn(4, 8, 16, 16, generator=generator)
    grad_y = torch.zeros(4, 9, 16, 16)
    grad_y[:, 8] = 1.0

    def gradients(x: Tensor, impl: str) -> list[Tensor]:
        """The first, and that of its squared norm."""
        x = x.requires_grad_()
        (first,) = torch.autograd.grad(F.minibatch_stddev(x, impl=impl), x, grad_y.to(x.dtype), create_graph=True)
        return [first.detach(), *torch.autograd.grad(first.square().sum(), x)]

    exact = gradients(x.double(), "reference")
    ours, theirs = (gradients(x.clone(), impl) for impl in ("cpu", "reference"))
    for a, b, c in zip(ours, theirs, exact, strict=True):
        errors = [float((value - c).abs().max()) for value in (a, b)]
        assert errors[0] <= 2 * errors[1] + 1e-7 * float(c.abs().max())


X, Y = torch.randn(4, 6, 5), torch.randn(4, 7, 5)
BAD_CALLS: dict[str, Callable[[Any], Any]] = {
    "outer, channels and inner must be those of x": lambda ops: ops.pixel_norm(X, 4, 7, 5, 1e-8, X.clone()),
    "y must have x's strides": lambda ops: ops.pixel_norm(X, 4, 6, 5, 1e-8, Y),
    "grad_y must have x's dtype": lambda ops: ops.pixel_norm_backward(X.double(), X, 4, 6, 5, 1e-8, X.clone()),
    "x must be dense": lambda ops: ops.pixel_norm(X[:, ::2], 4, 3, 5, 1e-8, X[:, ::2]),
    "y must have 140 elements": lambda ops: ops.minibatch_stddev(X, 4, 6, 5, 4, 1, 1e-8, False, X.clone()),
    "group must divide": lambda ops: ops.minibatch_stddev(X, 4, 6, 5, 3, 1, 1e-8, False, Y),
    "maps must divide": lambda ops: ops.minibatch_stddev(X, 4, 6, 5, 2, 4, 1e-8, False, Y),
    "grad_y must have 140 elements": lambda ops: ops.minibatch_stddev_backward(
        X, X, 4, 6, 5, 2, 1, 1e-8, False, X.clone()
    ),
    "grad_x must have x's strides": lambda ops: ops.minibatch_stddev_backward(Y, X, 4, 6, 5, 2, 1, 1e-8, False, Y),
}


@needs_extension
@pytest.mark.parametrize("message", BAD_CALLS)
def test_raw_calls_check_their_sizes(message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        BAD_CALLS[message](torch.ops.gencore_c)
