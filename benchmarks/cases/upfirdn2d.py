"""``upfirdn2d`` beside zeros between the pixels and a depthwise convolution, as StyleGANs in plain PyTorch have it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

import gencore.functional
from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem


class Upfirdn2d(Case):
    op = "upfirdn2d"
    differentiable = ("x",)
    layouts = ("contiguous", "channels_last")
    problems = (
        Problem("up 2, 2x16x16x16", {"shape": (2, 16, 16, 16), "up": 2, "padding": (2, 1, 2, 1)}),
        Problem(
            "up 2, 8x128x64x64",
            {"shape": (8, 128, 64, 64), "up": 2, "padding": (2, 1, 2, 1)},
            quick=True,
        ),
        Problem(
            "down 2, 8x128x128x128",
            {"shape": (8, 128, 128, 128), "down": 2, "padding": (1, 1, 1, 1)},
        ),
        Problem(
            "filter, 8x128x128x128",
            {"shape": (8, 128, 128, 128), "padding": (2, 1, 2, 1)},
        ),
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        f = gencore.functional.setup_filter([1, 3, 3, 1], device=make.device)
        return {"x": make.normal(*problem["shape"]), "f": f}

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        up, down = problem.sizes.get("up", 1), problem.sizes.get("down", 1)
        return (inputs["x"], inputs["f"], up, down, list(problem["padding"])), {"gain": float(up * up)}

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        up, down = problem.sizes.get("up", 1), problem.sizes.get("down", 1)
        return (_depthwise(inputs["x"], inputs["f"], up, down, problem["padding"]),)

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        n, c, h, w = problem["shape"]
        up, down = problem.sizes.get("up", 1), problem.sizes.get("down", 1)
        small, large = n * c * h * w, n * c * (h * up // down) * (w * up // down)
        calls = 1 if mode == "forward" else 2  # the gradient is the op the other way round
        taps = 4 // up
        return Cost(flops=calls * 2 * 2 * taps * large, bytes=calls * (small + large) * itemsize)


def _depthwise(x: Tensor, f: Tensor, up: int, down: int, padding: tuple[int, ...]) -> Tensor:
    n, c, h, w = x.shape
    if up > 1:
        x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1)).reshape(n, c, h * up, w * up)
    kernel = (f * (up * up)).flip([0, 1]).to(x.dtype)[None, None].repeat(c, 1, 1, 1)
    return F.conv2d(F.pad(x, padding), kernel, stride=down, groups=c)


CASE = Upfirdn2d()
