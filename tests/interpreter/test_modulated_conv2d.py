"""``modulated_conv2d`` by name: Triton's convolutions inside it too, and float16 where styles and weights are large."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gencore import functional as F


class _Ran(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ran: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran.add(f"{func.namespace}.{func._opname}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("up", [1, 2])
def test_every_convolution_is_tritons(up: int) -> None:
    x, weight, style, f = torch.randn(2, 3, 4, 4), torch.randn(4, 3, 3, 3), torch.ones(2, 3), F.setup_filter([1, 1])
    options: dict[str, Any] = {"up": up, "padding": 1, "resample_filter": f}
    for call in (
        lambda: F.modulated_conv2d(x, weight, style, impl="triton", **options),
        lambda: F.conv2d_resample(x, weight, f, up, padding=1, impl="triton"),
    ):
        with _Ran() as seen:
            call()
        assert "gencore.convolution" in seen.ran
        assert not seen.ran & {"aten.convolution", "aten.mm", "aten.addmm", "aten.linear"}


@pytest.mark.parametrize("demodulate", [True, False])
def test_float16_does_not_overflow_on_the_way(demodulate: bool) -> None:
    """Styles of 6 and weights of 3 on pixels of up to 256, as float16 training clamps them."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(1, 512, 3, 3, generator=generator) * 100).clamp(-256, 256)
    weight = torch.randn(3, 512, 3, 3, generator=generator) * 3
    style = torch.full((1, 512), 6.0)
    grad = torch.randn(1, 3, 3, 3, generator=generator)
    options: dict[str, Any] = {"padding": 1, "demodulate": demodulate, "gain": 1.0 if demodulate else 1e-4}

    def run(dtype: torch.dtype, impl: str) -> tuple[Tensor, ...]:
        tensors = [t.half().to(dtype).requires_grad_() for t in (x, weight, style)]
        y = F.modulated_conv2d(*tensors, impl=impl, **options)
        return (y, *torch.autograd.grad(y, tensors, grad.half().to(dtype)))

    for ours, wanted in zip(run(torch.float16, "triton"), run(torch.float64, "reference"), strict=True):
        assert ours.dtype == torch.float16
        scale = wanted.square().mean().sqrt()
        torch.testing.assert_close(ours.double() / scale, wanted / scale, rtol=0.02, atol=0.02)
