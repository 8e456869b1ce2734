"""``spectral_norm_list`` beside what ``torch.nn.utils.parametrizations.spectral_norm`` computes, layer by layer.

One training forward over all layers of a network: an iteration of the power method, and W / sigma written.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

import gencore.functional
from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem
from gencore.models import create_model

EPS = 1e-12
# DCGAN's widths over four, at which calls cost more than memory.
SMALL = ((16, 3, 4, 4), (32, 16, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (1, 2048))
MODELS = {
    "SNGAN-32 discriminator": "sngan_32",
    "SNGAN-128 discriminator": "sngan_128",
    "BigGAN-128 discriminator": "biggan_128",
}


@cache
def shapes(network: str) -> tuple[tuple[int, ...], ...]:
    """Of all weights that have spectral norm in the network, layer by layer."""
    if network not in MODELS:
        return SMALL
    with torch.device("meta"):
        discriminator: Any = create_model(MODELS[network]).discriminator
    layers = [m for m in discriminator.modules() if is_parametrized(m, "weight")]
    return tuple(tuple(layer.parametrizations.weight.original.shape) for layer in layers)


class SpectralNormList(Case):
    op = "spectral_norm_list"
    differentiable = ()
    modes = ("forward",)
    problems = (
        Problem("small network"),
        Problem("SNGAN-32 discriminator", quick=True),
        Problem("SNGAN-128 discriminator"),
        Problem("BigGAN-128 discriminator"),
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        inputs = {}
        for i, shape in enumerate(shapes(problem.name)):
            weight = make.normal(*shape, scale=0.02)
            inputs[f"weight{i}"] = weight
            for name, length in (("u", shape[0]), ("v", weight[0].numel())):
                inputs[f"{name}{i}"] = F.normalize(make.normal(length), dim=0)
        return inputs

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        lists = [[x for n, x in inputs.items() if n.startswith(key)] for key in ("weight", "u", "v")]
        return tuple(lists), {"n_power_iterations": 1, "eps": EPS}

    def ours(self, problem: Problem, inputs: Inputs, impl: str) -> Outputs:
        args, kwargs = self.arguments(problem, inputs)
        normal, _ = gencore.functional.spectral_norm_list(*args, **kwargs, impl=impl)
        return tuple(normal)

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        (weights, us, vs), _ = self.arguments(problem, inputs)
        return tuple(_normalised(*layer) for layer in zip(weights, us, vs, strict=True))

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        count = sum(torch.Size(shape).numel() for shape in shapes(problem.name))
        return Cost(5 * count, 4 * count * itemsize)  # read for v, for u and sigma, and for W / sigma, which is written


def _normalised(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    matrix = weight.flatten(1)
    with torch.no_grad():
        F.normalize(torch.mv(matrix.T, u), dim=0, eps=EPS, out=v)
        F.normalize(torch.mv(matrix, v), dim=0, eps=EPS, out=u)
    u, v = u.clone(), v.clone()
    return weight / torch.vdot(u, torch.mv(matrix, v))


CASE = SpectralNormList()
