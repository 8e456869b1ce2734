"""``linear``: layers of VAEs and mapping networks."""

from __future__ import annotations

import torch.nn.functional as F

from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem


class Linear(Case):
    op = "linear"
    differentiable = ("x", "weight", "bias")
    problems = tuple(
        Problem(f"{rows}x{wide} to {out}", {"rows": rows, "wide": wide, "out": out}, quick=rows == 256)
        for rows, wide, out in ((64, 784, 400), (256, 1024, 1024), (1024, 1024, 1024))
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        rows, wide, out = problem["rows"], problem["wide"], problem["out"]
        return {"x": make.normal(rows, wide), "weight": make.normal(out, wide, scale=0.02), "bias": make.normal(out)}

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        return tuple(inputs.values()), {}

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        return (F.linear(*inputs.values()),)

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        rows, wide, out = problem["rows"], problem["wide"], problem["out"]
        times = 3 if mode == "forward+backward" else 1
        numbers = rows * (wide + out) + wide * out
        return Cost(flops=2 * times * rows * wide * out, bytes=times * numbers * itemsize)


CASE = Linear()
