"""``conv_transpose2d``: the layers of a DCGAN's generator, kernel 4, stride 2, padding 1, without an epilogue."""

from __future__ import annotations

import torch.nn.functional as F

from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem

MODES = ("forward", "forward+backward")


class ConvTranspose2d(Case):
    op = "conv_transpose2d"
    differentiable = ("x", "weight")
    layouts = ("contiguous", "channels_last")
    problems = tuple(
        Problem(
            f"64x{wide}x{size}x{size} to {narrow}",
            {"shape": (64, wide, size, size), "channels": narrow},
            modes=MODES,
            quick=size == 8,
        )
        for wide, narrow, size in ((512, 256, 8), (256, 128, 16), (128, 64, 32), (128, 3, 32))
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        channels = problem["shape"][1]
        return {
            "x": make.normal(*problem["shape"]),
            "weight": make.normal(channels, problem["channels"], 4, 4, scale=0.02),
        }

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        return tuple(inputs.values()), {"stride": 2, "padding": 1}

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        return (F.conv_transpose2d(inputs["x"], inputs["weight"], stride=2, padding=1),)

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        n, c, h, w = problem["shape"]
        products = n * c * problem["channels"] * h * w * 16
        numbers = n * h * w * (c + 4 * problem["channels"]) + 16 * c * problem["channels"]
        # The backward forms two more products of the same size, and reads and writes what the forward did, twice.
        times = 3 if mode == "forward+backward" else 1
        return Cost(flops=2 * times * products, bytes=times * numbers * itemsize)


CASE = ConvTranspose2d()
