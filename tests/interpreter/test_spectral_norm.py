"""The phases of the kernels for a whole network, by the interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as TF
from gencore.kernels import _phases
from torch import Tensor

from gencore import functional as F
from tests.interpreter.instrument import checked_memory

SHAPES = ((4, 5000), (24, 5, 3, 3), (3, 7), (1, 30), (150, 4))


def _step(count: int = len(SHAPES)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES[:count]]
    us = [TF.normalize(torch.randn(w.shape[0], generator=generator), dim=0) for w in weights]
    vs = [TF.normalize(torch.randn(w[0].numel(), generator=generator), dim=0) for w in weights]
    normal, sigmas = F.spectral_norm_list(weights, us, vs, impl="triton")
    loss = sum((x**3).sum() for x in normal) + sum(sigmas)
    return [*normal, *sigmas, *us, *vs, *torch.autograd.grad(loss, weights)]


def test_the_bits_do_not_depend_on_the_number_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _step()
    for programs in (1, 2, 7):
        monkeypatch.setattr(_phases, "_FEW_PROGRAMS", programs)
        assert all(torch.equal(a, b) for a, b in zip(_step(), wanted, strict=True))


def test_a_launch_takes_as_many_layers_as_its_arguments_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _step()
    with checked_memory() as check:
        _step()
        together = len(check.launches)
        _step(2)
        assert len(check.launches) == 2 * together  # phases, which are launches here; not layers
        monkeypatch.setattr(_phases, "_MOST_LAYERS", 2)
        results = _step()
        assert len(check.launches) == 5 * together
    assert all(torch.equal(a, b) for a, b in zip(results, wanted, strict=True))
