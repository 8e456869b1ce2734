"""``self_attention`` beside bmm, softmax, bmm (SAGAN's and BigGAN's code) and ``scaled_dot_product_attention``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem


def _problem(name: str, *sizes: int, quick: bool = False) -> Problem:
    return Problem(name, dict(zip(("batch", "queries", "keys", "width", "values"), sizes, strict=True)), quick=quick)


class SelfAttention(Case):
    op = "self_attention"
    differentiable = ("query", "key", "value")
    problems = (
        Problem(
            "16x16, C=64, pooled",
            {"batch": 4, "queries": 256, "keys": 64, "width": 8, "values": 32},
            modes=("forward", "forward+backward", "double backward"),
        ),
        _problem("64x64, C=64, pooled, batch 8", 8, 4096, 1024, 8, 32, quick=True),
        _problem("64x64, C=64, batch 4", 4, 4096, 4096, 8, 64),
        _problem("32x32, C=256, batch 8", 8, 1024, 1024, 32, 256),
        _problem("32x32, C=512, batch 4", 4, 1024, 1024, 64, 512),
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        # Feature maps, as 1x1 convolutions leave them.
        maps = {"query": ("width", "queries"), "key": ("width", "keys"), "value": ("values", "keys")}
        return {n: make.normal(problem["batch"], problem[c], problem[p], scale=0.5) for n, (c, p) in maps.items()}

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        return tuple(x.mT for x in inputs.values()), {}

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        query, key, value = inputs.values()
        return (torch.softmax(query.mT @ key, -1) @ value.mT,)

    def peers(self, problem: Problem) -> dict[str, Callable[[Inputs], Outputs]]:
        def sdpa(inputs: Inputs) -> Outputs:
            heads = (x.mT.unsqueeze(1) for x in inputs.values())
            return (F.scaled_dot_product_attention(*heads, scale=1.0).squeeze(1),)

        return {"sdpa": sdpa}

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        b, n, m, d, dv = (problem[k] for k in ("batch", "queries", "keys", "width", "values"))
        # The backward works the scores out again: five products, three of the width and two of the values'.
        products = {"forward": d + dv, "forward+backward": 4 * d + 3 * dv, "double backward": 12 * d + 9 * dv}[mode]
        tensors = {"forward": 1, "forward+backward": 4, "double backward": 8}[mode]
        return Cost(2 * b * n * m * products, tensors * b * (n + m) * (d + dv) * itemsize)


CASE = SelfAttention()
