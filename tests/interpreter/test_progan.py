"""Pixel norm and minibatch stddev where a tile does not hold all channels, or a slice is no single piece of memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gencore import functional as F
from tests.accuracy import Comparison, assert_accurate

CASES: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], dict[str, Any]]] = {
    "planes": (F.pixel_norm, (2, 40, 9, 16), {}),
    "looped planes": (F.pixel_norm, (2, 1030, 3, 3), {"eps": 1e-4}),
    "rows": (F.pixel_norm, (300, 48), {}),
    "looped rows": (F.pixel_norm, (3, 8200), {}),
    "groups": (F.minibatch_stddev, (6, 30, 5, 9), {"group_size": 3}),
    "slices": (F.minibatch_stddev, (4, 36, 5, 9), {"num_channels": 3, "group_size": 2}),
    "large maps": (F.minibatch_stddev, (2, 2, 30, 37), {"num_channels": 2}),
}


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradient(case: str, channels_last: bool) -> None:
    function, shape, options = CASES[case]

    def compare(seed: int) -> list[Comparison]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(shape, dtype=torch.float64, generator=generator) + 0.25
        x = x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x
        x = x.float().double()
        call = partial(function, **options)
        grad = torch.randn(call(x).shape, dtype=torch.float64, generator=generator).float().double()
        results = (
            _run(call, x, grad, dtype, impl)
            for dtype, impl in (
                (torch.float32, "triton"),
                (torch.float32, "reference"),
                (torch.float64, "reference"),
            )
        )
        return [Comparison(*c) for c in zip(("y", "grad_x"), *results, strict=True)]

    assert_accurate(compare(0), lambda: map(compare, range(1, 8)))


def _run(call: Callable[..., Tensor], x: Tensor, grad: Tensor, dtype: torch.dtype, impl: str) -> tuple[Tensor, ...]:
    x = x.to(dtype).requires_grad_()
    y = call(x, impl=impl)
    return y.detach(), *torch.autograd.grad(y, x, grad.to(dtype))
