"""``bias_act`` beside an addition, the activation and a multiplication: what follows every layer of a StyleGAN."""

from __future__ import annotations

import torch.nn.functional as F

from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem

SLOPE, GAIN = 0.2, 2.0**0.5


class BiasAct(Case):
    op = "bias_act"
    differentiable = ("x", "b")
    modes = ("forward", "forward+backward", "double backward")
    layouts = ("contiguous", "channels_last")
    problems = (
        Problem("2x16x16x16", {"shape": (2, 16, 16, 16)}),
        Problem("8x128x128x128", {"shape": (8, 128, 128, 128)}),
        Problem("8x512x16x16", {"shape": (8, 512, 16, 16)}, quick=True),
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        x = make.normal(*problem["shape"])
        b = make.normal(problem["shape"][1], scale=0.1)
        # No pre-activation near zero: there the last bit would decide between two slopes.
        u = x.double() + b.double()[:, None, None]
        return {"x": x + (0.1 * u.sign() * (u.abs() < 0.01)).to(x.dtype), "b": b}

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        return (inputs["x"], inputs["b"]), {"act": "lrelu"}

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        return (F.leaky_relu(inputs["x"] + inputs["b"][:, None, None], SLOPE) * GAIN,)

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        n, c, h, w = problem["shape"]
        # x -> y; then grad_y, x -> grad_x; then the gradient of grad_x, x -> the gradient of grad_y.
        tensors = {"forward": 2, "forward+backward": 5, "double backward": 8}[mode]
        return Cost(flops=2 * tensors * n * c * h * w, bytes=tensors * n * c * h * w * itemsize)


CASE = BiasAct()
