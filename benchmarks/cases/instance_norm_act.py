"""``instance_norm_act`` beside ``relu(instance_norm(x))``: the layer between the convolutions of a CycleGAN."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem

EPS = 1e-5


class InstanceNormAct(Case):
    op = "instance_norm_act"
    differentiable = ("x", "weight", "bias")
    layouts = ("contiguous", "channels_last")
    problems = (
        Problem("2x64x32x32", {"shape": (2, 64, 32, 32)}, modes=("forward", "forward+backward", "double backward")),
        Problem("8x128x64x64", {"shape": (8, 128, 64, 64)}, quick=True),
        Problem("1x256x64x64", {"shape": (1, 256, 64, 64)}),
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        channels = problem["shape"][1]
        inputs = {
            "x": make.normal(*problem["shape"], shift=0.5),
            "weight": make.statistics(channels),
            "bias": make.normal(channels, scale=0.1).float(),
        }
        return inputs | {"x": _off_the_kink(inputs)}

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        return tuple(inputs.values()), {"eps": EPS, "activation": "relu"}

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        return (F.relu(_normalised(inputs)),)

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        n, c, h, w = problem["shape"]
        # As for batch norm: x twice and y; then x and grad_y twice and grad_x.
        tensors, operations = {"forward": (3, 8), "forward+backward": (8, 22), "double backward": (18, 60)}[mode]
        return Cost(flops=operations * n * c * h * w, bytes=tensors * n * c * h * w * itemsize)


def _normalised(inputs: Inputs) -> Tensor:
    x, weight, bias = inputs.values()
    return F.instance_norm(x, weight=weight.to(x.dtype), bias=bias.to(x.dtype), eps=EPS)


def _off_the_kink(inputs: Inputs) -> Tensor:
    """x, such that no pre-activation is near zero: there the last bit would decide whether a gradient passes."""
    y = _normalised({name: value.double() for name, value in inputs.items()})
    return inputs["x"] + (0.1 * y.sign() * (y.abs() < 0.01)).to(inputs["x"].dtype)


CASE = InstanceNormAct()
