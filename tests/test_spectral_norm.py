"""What the generic tests do not ask of ``spectral_norm``: weights far from 1, and layers that are cut among threads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor

from gencore import functional as F
from gencore.extension import EXTENSION

# With the dimension of the outputs. The last two outgrow the caches and have strips of columns that do not divide them.
SHAPES = (((8, 40), 0), ((300, 80, 4, 4), 0), ((7, 60000), 0), ((60000, 7), 0), ((1030, 2200), 0), ((3, 700, 1100), 1))


def _results(weight: Tensor, impl: str, dim: int, **options: object) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows, columns = weight.shape[dim], weight.numel() // weight.shape[dim]
    u, v = (TF.normalize(torch.randn(n, generator=generator), dim=0).to(weight.dtype) for n in (rows, columns))
    normal, sigma = F.spectral_norm(weight, u, v, impl=impl, dim=dim, **options)  # type: ignore[arg-type]
    return [normal, sigma, u, v]


@pytest.mark.skipif(not EXTENSION.loaded, reason="needs the C++ extension")
@pytest.mark.parametrize("v_first", [True, False])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
def test_both_products_of_one_pass_are_those_of_two(
    shape: tuple[int, ...], dim: int, scale: float, v_first: bool
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * scale
    options = {"v_first": v_first, "eps": 1e-30, "n_power_iterations": 2}
    results = _results(weight, "cpu", dim, **options)
    wanted = _results(weight.double(), "reference", dim, **options)
    for a, b in zip(results, wanted, strict=True):
        assert (a.double() - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.skipif(not EXTENSION.loaded, reason="needs the C++ extension")
@pytest.mark.parametrize("v_first", [True, False])
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
def test_the_bits_do_not_depend_on_the_number_of_threads(shape: tuple[int, ...], dim: int, v_first: bool) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            runs.append(_results(weight, "cpu", dim, v_first=v_first))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
