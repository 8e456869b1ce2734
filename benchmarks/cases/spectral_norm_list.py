"""``spectral_norm_list`` beside what ``torch.nn.utils.parametrizations.spectral_norm`` computes, layer by layer.

One training forward over all layers of a network: an iteration of the power method, and W / sigma written.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import gencore.functional
from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem

EPS = 1e-12
Shapes = tuple[tuple[int, ...], ...]


def _residual_discriminator(width: int, widths: tuple[int, ...], attention_after: int | None) -> Shapes:
    """The 3x3 and 1x1 convolutions and the last linear layer of a discriminator of residual blocks."""
    shapes, before = [], 3
    for i, factor in enumerate(widths):
        after = width * factor
        shapes += [(after, before, 3, 3), (after, after, 3, 3)] + [(after, before, 1, 1)] * (before != after)
        if i == attention_after:
            narrow, half = after // 8, after // 2
            shapes += [(narrow, after, 1, 1), (narrow, after, 1, 1), (half, after, 1, 1), (after, half, 1, 1)]
        before = after
    return (*shapes, (1, before))


NETWORKS: dict[str, Shapes] = {
    # DCGAN's widths over four, at which calls cost more than memory.
    "small network": ((16, 3, 4, 4), (32, 16, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (1, 2048)),
    "SNGAN-32 discriminator": _residual_discriminator(128, (1, 1, 1, 1), None),
    "SNGAN-128 discriminator": _residual_discriminator(64, (1, 2, 4, 8, 16, 16), None),
    "BigGAN-128 discriminator": _residual_discriminator(96, (1, 2, 4, 8, 16, 16), 0),
}


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
        for i, shape in enumerate(NETWORKS[problem.name]):
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
        count = sum(torch.Size(shape).numel() for shape in NETWORKS[problem.name])
        return Cost(5 * count, 4 * count * itemsize)  # read for v, for u and sigma, and for W / sigma, which is written


def _normalised(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    matrix = weight.flatten(1)
    with torch.no_grad():
        F.normalize(torch.mv(matrix.T, u), dim=0, eps=EPS, out=v)
        F.normalize(torch.mv(matrix, v), dim=0, eps=EPS, out=u)
    u, v = u.clone(), v.clone()
    return weight / torch.vdot(u, torch.mv(matrix, v))


CASE = SpectralNormList()
