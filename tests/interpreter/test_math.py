"""The device functions that the kernels share, against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from gencore.kernels import _math

from gencore.reference.philox import philox_normal

exp_and_expm1 = _math.exp_and_expm1
sin_cos_pi = _math.sin_cos_pi
draw = _math.philox_normal


@triton.jit
def _exp(x, exp, expm1, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b = exp_and_expm1(tl.load(x + i))
    tl.store(exp + i, a)
    tl.store(expm1 + i, b)


@triton.jit
def _sin_cos(x, sine, cosine, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b = sin_cos_pi(tl.load(x + i))
    tl.store(sine + i, a)
    tl.store(cosine + i, b)


@triton.jit
def _normal(seed, first, out, BLOCK: tl.constexpr, LONG: tl.constexpr):
    i = tl.arange(0, BLOCK)
    counter = tl.load(first) + i
    counter = counter if LONG else counter.to(tl.int32)
    a, b, c, d = draw(tl.load(seed), counter)
    tl.store(out + i, a)
    tl.store(out + BLOCK + i, b)
    tl.store(out + 2 * BLOCK + i, c)
    tl.store(out + 3 * BLOCK + i, d)


def _ulps(value: torch.Tensor, exact: torch.Tensor) -> float:
    spacing = torch.from_numpy(np.spacing(exact.abs().float().clamp(min=torch.finfo(torch.float32).tiny).numpy()))
    return float(((value.double() - exact).abs() / spacing).max())


def test_exp_and_expm1() -> None:
    x = torch.cat([torch.linspace(-86, 88.7, 6000), torch.linspace(-1, 1, 2000), torch.randn(192) * 1e-4])
    exp, expm1 = torch.empty_like(x), torch.empty_like(x)
    _exp[(x.numel() // 1024,)](x, exp, expm1, BLOCK=1024)
    assert _ulps(exp, x.double().exp()) < 2
    assert _ulps(expm1, x.double().expm1()) < 3


def test_exp_at_the_ends() -> None:
    x = torch.tensor([88.8, 1e30, math.inf, -104.5, -1e30, -math.inf, math.nan, 0.0])
    exp, expm1 = torch.empty_like(x), torch.empty_like(x)
    _exp[(1,)](x, exp, expm1, BLOCK=8)
    assert exp[:6].tolist() == [math.inf] * 3 + [0.0] * 3
    assert expm1[:6].tolist() == [math.inf] * 3 + [-1.0] * 3
    assert exp[6].isnan()
    assert expm1[6].isnan()
    assert (exp[7], expm1[7]) == (1.0, 0.0)


def test_sin_cos_pi() -> None:
    x = torch.linspace(-1, 1, 8192)
    sine, cosine = torch.empty_like(x), torch.empty_like(x)
    _sin_cos[(8,)](x, sine, cosine, BLOCK=1024)
    assert (sine.double() - (math.pi * x.double()).sin()).abs().max() < 1.2e-7
    assert (cosine.double() - (math.pi * x.double()).cos()).abs().max() < 1.2e-7
    assert sine[[0, -1]].abs().max() == 0


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("seed", [0, 2**62 + 12345, 2**63 - 1])
def test_noise_is_the_reference_stream(seed: int, long: bool) -> None:
    out = torch.empty(4, 512)
    _normal[(1,)](torch.tensor([seed]), torch.tensor([0]), out, BLOCK=512, LONG=long)
    blocks = out.view(4, 32, 16).movedim(0, 1).reshape(1, -1)
    torch.testing.assert_close(blocks, philox_normal(torch.tensor([seed]), 1, 2048), rtol=2e-6, atol=1e-6)


def test_counters_past_32_bits_are_used_whole() -> None:
    draws = []
    for first in (16, 2**32 + 16):
        out = torch.empty(4, 16)
        _normal[(1,)](torch.tensor([1]), torch.tensor([first]), out, BLOCK=16, LONG=True)
        draws.append(out)
    assert not torch.equal(*draws)
