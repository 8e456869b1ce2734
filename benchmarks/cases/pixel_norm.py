"""``pixel_norm`` beside square, mean, root and product: what follows every convolution of a ProGAN's generator."""

from __future__ import annotations

import torch

from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem

EPS = 1e-8


class PixelNorm(Case):
    op = "pixel_norm"
    differentiable = ("x",)
    layouts = ("contiguous", "channels_last")
    problems = (
        Problem("2x16x16x16", {"shape": (2, 16, 16, 16)}, modes=("forward", "forward+backward", "double backward")),
        Problem("64x512", {"shape": (64, 512)}, layouts=("contiguous",)),
        Problem("8x512x4x4", {"shape": (8, 512, 4, 4)}),
        Problem("8x512x32x32", {"shape": (8, 512, 32, 32)}, quick=True),
        Problem("4x128x128x128", {"shape": (4, 128, 128, 128)}),
        Problem("2x16x1024x1024", {"shape": (2, 16, 1024, 1024)}),
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        return {"x": make.normal(*problem["shape"])}

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        return (inputs["x"],), {"eps": EPS}

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        x = inputs["x"]
        return (x * torch.rsqrt(torch.mean(x.square(), dim=1, keepdim=True) + EPS),)

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        numel = torch.Size(problem["shape"]).numel()
        # x -> y; then grad_y, x -> grad_x; then the gradient of grad_x, grad_y, x -> the gradients of grad_y and x.
        tensors, operations = {"forward": (2, 3), "forward+backward": (5, 11), "double backward": (10, 35)}[mode]
        return Cost(flops=operations * numel, bytes=tensors * numel * itemsize)


CASE = PixelNorm()
