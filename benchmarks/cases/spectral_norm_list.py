"""``spectral_norm_list`` beside what ``torch.nn.utils.parametrizations.spectral_norm`` computes, layer by layer.

One training forward over all layers of a network: an iteration of the power method, and W / sigma written; or sigma
alone, which is all that the layers need where ``spectral_norm_model`` leaves 1 / sigma to convolutions. An iteration
begins with u, as PyTorch's parametrisation and gencore's layers have it, or with v, as the paper and BigGAN have it.
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


def _problems(network: str, *, v_first: bool = False, quick: bool = False) -> tuple[Problem, Problem]:
    name = network + ", v first" * v_first
    options = {"network": network, "v_first": v_first}
    return (
        Problem(f"{name}, W/sigma written", {**options, "written": True}, quick=quick),
        Problem(f"{name}, sigma only, 1/sigma goes to the convolution", {**options, "written": False}),
    )


class SpectralNormList(Case):
    op = "spectral_norm_list"
    differentiable = ()
    modes = ("forward",)
    problems = (
        *_problems("small network"),
        *_problems("SNGAN-32 discriminator", quick=True),
        *_problems("SNGAN-128 discriminator"),
        *_problems("BigGAN-128 discriminator"),
        *_problems("BigGAN-128 discriminator", v_first=True),
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        inputs = {}
        for i, shape in enumerate(shapes(problem["network"])):
            weight = make.normal(*shape, scale=0.02)
            inputs[f"weight{i}"] = weight
            if not problem["written"]:  # where PyTorch's goes, so that no compiler drops it
                inputs[f"normal{i}"] = torch.zeros_like(weight)
            for name, length in (("u", shape[0]), ("v", weight[0].numel())):
                inputs[f"{name}{i}"] = F.normalize(make.normal(length), dim=0)
        return inputs

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        lists = [[x for n, x in inputs.items() if n.startswith(key)] for key in ("weight", "u", "v")]
        written = None if problem["written"] else [False] * len(lists[0])
        options = {"n_power_iterations": 1, "eps": EPS, "v_first": problem["v_first"], "written": written}
        return tuple(lists), options

    def ours(self, problem: Problem, inputs: Inputs, impl: str) -> Outputs:
        args, kwargs = self.arguments(problem, inputs)
        normal, sigmas = gencore.functional.spectral_norm_list(*args, **kwargs, impl=impl)
        return tuple(normal) or tuple(sigmas)

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        (weights, us, vs), _ = self.arguments(problem, inputs)
        sigmas = tuple(_iterate(*layer, problem["v_first"]) for layer in zip(weights, us, vs, strict=True))
        if problem["written"]:
            return tuple(weight / sigma for weight, sigma in zip(weights, sigmas, strict=True))
        for i, (weight, sigma) in enumerate(zip(weights, sigmas, strict=True)):
            torch.div(weight, sigma, out=inputs[f"normal{i}"])
        return sigmas

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        count = sum(torch.Size(shape).numel() for shape in shapes(problem["network"]))
        # Each row that gives a number of u can go into v at once, and each column the other way round.
        if not problem["written"]:
            return Cost(4 * count, count * itemsize)
        return Cost(5 * count, 3 * count * itemsize)  # and for W / sigma, which is written


def _iterate(weight: Tensor, u: Tensor, v: Tensor, v_first: bool) -> Tensor:
    matrix = weight.flatten(1)
    with torch.no_grad():
        if v_first:
            F.normalize(torch.mv(matrix.T, u), dim=0, eps=EPS, out=v)
        F.normalize(torch.mv(matrix, v), dim=0, eps=EPS, out=u)
        if not v_first:
            F.normalize(torch.mv(matrix.T, u), dim=0, eps=EPS, out=v)
    u, v = u.clone(), v.clone()
    return torch.vdot(u, torch.mv(matrix, v))


CASE = SpectralNormList()
