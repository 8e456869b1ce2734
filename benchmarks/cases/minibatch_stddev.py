"""``minibatch_stddev`` beside ProGAN's own dozen of ops: what stands before the last layers of a discriminator."""

from __future__ import annotations

import torch

from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem

EPS = 1e-8


class MinibatchStddev(Case):
    op = "minibatch_stddev"
    differentiable = ("x",)
    modes = ("forward", "forward+backward", "double backward")
    layouts = ("contiguous", "channels_last")
    problems = (
        Problem("4x16x4x4", {"shape": (4, 16, 4, 4), "group": 4}),
        Problem("8x512x4x4", {"shape": (8, 512, 4, 4), "group": 4}, quick=True),
        Problem("64x512x4x4", {"shape": (64, 512, 4, 4), "group": 4}),
        Problem("16x128x64x64", {"shape": (16, 128, 64, 64), "group": 4}),
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        return {"x": make.normal(*problem["shape"], shift=0.5)}

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        return (inputs["x"], problem["group"]), {}

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        x, group = inputs["x"], problem["group"]
        n, _, h, w = x.shape
        y = x.reshape(group, n // group, *x.shape[1:])
        y = y - y.mean(0)
        y = (y.square().mean(0) + EPS).sqrt()
        y = y.mean((1, 2, 3)).reshape(-1, 1, 1, 1).repeat(group, 1, h, w)
        return (torch.cat([x, y], dim=1),)

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        numel = torch.Size(problem["shape"]).numel()
        # x -> y; then grad_y, x -> grad_x; then the gradient of grad_x, grad_y, x -> the gradients of grad_y and x.
        tensors, operations = {"forward": (2, 5), "forward+backward": (5, 13), "double backward": (10, 35)}[mode]
        return Cost(flops=operations * numel, bytes=tensors * numel * itemsize)


CASE = MinibatchStddev()
