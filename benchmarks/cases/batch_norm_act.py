"""``batch_norm_act`` beside ``leaky_relu(batch_norm(x))``: the layer between the convolutions of a DCGAN."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem

SLOPE, EPS, MOMENTUM = 0.2, 1e-5, 0.1


class BatchNormAct(Case):
    op = "batch_norm_act"
    differentiable = ("x", "weight", "bias")
    layouts = ("contiguous", "channels_last")
    problems = (
        Problem(
            "16x64x16x16 training",
            {"shape": (16, 64, 16, 16), "training": True},
            modes=("forward", "forward+backward", "double backward"),
        ),
        Problem("64x128x32x32 training", {"shape": (64, 128, 32, 32), "training": True}, quick=True),
        Problem(
            "64x128x32x32 evaluation",
            {"shape": (64, 128, 32, 32), "training": False},
            modes=("forward",),
            quick=True,
        ),
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        channels = problem["shape"][1]
        inputs = {
            "x": make.normal(*problem["shape"], shift=0.5),
            "weight": make.statistics(channels),
            "bias": make.normal(channels, scale=0.1).float(),
            "running_mean": make.statistics(channels),
            "running_var": make.statistics(channels),
        }
        return inputs | {"x": _off_the_kink(inputs, problem["training"])}

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        rest = {"training": problem["training"], "momentum": MOMENTUM, "eps": EPS}
        return tuple(inputs.values()), {**rest, "activation": "leaky_relu", "negative_slope": SLOPE}

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        return (F.leaky_relu(_normalised(inputs, problem["training"]), SLOPE),)

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        n, c, h, w = problem["shape"]
        # The statistics of a channel must be known before its first output is: training reads x twice and writes y;
        # the backward reads x and grad_y twice and writes grad_x; the double backward reads and writes as much again.
        training = {"forward": (3, 8), "forward+backward": (8, 22), "double backward": (18, 60)}
        tensors, operations = training[mode] if problem["training"] else (2, 4)
        return Cost(flops=operations * n * c * h * w, bytes=tensors * n * c * h * w * itemsize)


def _normalised(inputs: Inputs, training: bool) -> Tensor:
    x, weight, bias, mean, var = inputs.values()
    return F.batch_norm(x, mean, var, weight, bias, training, MOMENTUM, EPS)


def _off_the_kink(inputs: Inputs, training: bool) -> Tensor:
    """x, such that no pre-activation is near zero: there the last bit would decide between two slopes."""
    y = _normalised({name: value.double() for name, value in inputs.items()}, training)
    return inputs["x"] + (0.1 * y.sign() * (y.abs() < 0.01)).to(inputs["x"].dtype)


CASE = BatchNormAct()
