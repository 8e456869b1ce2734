"""``upscale2d_conv2d``: the first convolutions of SAGAN's and SNGAN's residual blocks, beside PyTorch's two ops."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Call, Case, Cost, Inputs, Maker, Problem


def problem(shape: tuple[int, ...], channels: int, *, quick: bool = False) -> Problem:
    """``shape`` of the input; a 3x3 filter."""
    name = f"{'x'.join(map(str, shape))} to {channels}"
    return Problem(name, {"shape": shape, "channels": channels}, quick=quick)


class Rescaled(Case):
    """Both ways."""

    differentiable = ("x", "weight")
    layouts = ("contiguous", "channels_last")

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        shape = problem["shape"]
        return {"x": make.normal(*shape), "weight": make.normal(problem["channels"], shape[1], 3, 3, scale=0.02)}

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        return (inputs["x"], inputs["weight"]), {}

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        """Of the one convolution at a stride of 2: 16 products for each pixel of the smaller image."""
        n, inner, height, width = problem["shape"]
        outer, up = problem["channels"], self.op == "upscale2d_conv2d"
        small = n * height * width // (1 if up else 4)
        times = 3 if mode == "forward+backward" else 1
        numbers = small * (inner * (1 if up else 4) + outer * (4 if up else 1)) + 9 * inner * outer
        return Cost(flops=2.0 * times * small * 16 * inner * outer, bytes=float(times * numbers * itemsize))


class Upscale2dConv2d(Rescaled):
    op = "upscale2d_conv2d"
    problems = (
        problem((16, 64, 8, 8), 64),
        problem((64, 256, 16, 16), 256, quick=True),
        problem((8, 1024, 8, 8), 512),
        problem((8, 128, 64, 64), 64),
    )

    def eager(self, problem: Problem, inputs: Inputs) -> tuple[Tensor, ...]:
        doubled = F.interpolate(inputs["x"], scale_factor=2.0, mode="nearest")
        return (F.conv2d(doubled, inputs["weight"], padding=1),)


CASE = Upscale2dConv2d()
