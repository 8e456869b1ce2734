"""The fused block: torch.nn's three modules in sequence, in training and in evaluation."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

import gencore.nn
from gencore.nn.block import conv_norm_act

CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "conv2d": ("Conv2d", (20, 30, 4), {"stride": 2, "padding": 1, "bias": False}, (4, 20, 8, 8)),
    "conv2d reflected": ("Conv2d", (20, 30, 3), {"padding": 1, "padding_mode": "reflect"}, (4, 20, 6, 7)),
    "conv1d": ("Conv1d", (20, 30, 5), {}, (4, 20, 12)),
    "conv_transpose2d": ("ConvTranspose2d", (20, 30, 4), {"stride": 2, "padding": 1}, (4, 20, 5, 5)),
    "conv_transpose3d": ("ConvTranspose3d", (20, 30, 4), {"stride": 2, "padding": 1, "bias": False}, (2, 20, 3, 2, 3)),
    "groups": ("Conv2d", (32, 32, 3), {"groups": 2}, (4, 32, 6, 6)),
}


def build(case: str, affine: bool = True) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Ours, torch.nn's with the same weights and statistics, and an input."""
    name, sizes, options, shape = CASES[case]
    torch.manual_seed(0)
    norm = f"BatchNorm{len(shape) - 2}d"
    ours = gencore.nn.ConvNormAct(
        getattr(gencore.nn, name)(*sizes, **options, impl="cpu"),
        getattr(gencore.nn, norm)(sizes[1], affine=affine, activation="leaky_relu", negative_slope=0.2),
    )
    for tensor in ours[1].state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    theirs = nn.Sequential(
        getattr(nn, name)(*sizes, **options), getattr(nn, norm)(sizes[1], affine=affine), nn.LeakyReLU(0.2)
    )
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randn(shape)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_is_the_three_modules_in_sequence(case: str, affine: bool) -> None:
    ours, theirs, x = build(case, affine)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        results = []
        for model in (ours, theirs):
            y = model(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))])
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("residual", [False, True])
def test_folded_is_as_near_to_float64_as_pytorch(dtype: torch.dtype, residual: bool) -> None:
    ours, theirs, x = build("conv_transpose2d")
    ours, theirs, x = ours.to(dtype).eval(), theirs.to(dtype).eval(), x.to(dtype)
    exact_model = copy.deepcopy(theirs).double()
    with torch.no_grad():
        extra = torch.randn_like(theirs[:2](x)) if residual else None

        def plain(model: Any, x: torch.Tensor) -> torch.Tensor:
            y = model[1](model[0](x))
            return model[2](y if extra is None else y + extra.to(x.dtype))

        exact, error = plain(exact_model, x.double()), []
        for y in (ours(x, extra), plain(theirs, x)):
            assert y.dtype == dtype
            error.append((y.double() - exact).abs().max())
    assert error[0] <= 2 * error[1] + 4 * torch.finfo(dtype).eps * (1 if dtype == torch.float64 else 0)


def test_folds_only_where_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _, x = build("conv2d")
    called = []
    ours[1].register_forward_hook(lambda *_: called.append(True))
    ours(x)  # training: the statistics of the batch
    ours.eval()
    ours(x)  # gradients are recorded
    assert len(called) == 2
    with torch.no_grad():
        ours(x)
    assert len(called) == 2
    ours[1].running_mean += 1  # the next call sees every change of the statistics and parameters
    with torch.no_grad():
        folded = ours(x)
        torch.testing.assert_close(folded, ours[1](ours[0](x)), rtol=1e-4, atol=1e-5)


def test_layers_under_names_of_their_own_and_of_torch() -> None:
    ours, theirs, x = build("conv2d")
    named = nn.Sequential(OrderedDict(conv=ours[0], norm=ours[1])).eval()
    with torch.no_grad():
        torch.testing.assert_close(conv_norm_act(named.conv, named.norm, x), ours.eval()(x))
        torch.testing.assert_close(conv_norm_act(*theirs.eval()[:2], x), theirs[:2](x))
