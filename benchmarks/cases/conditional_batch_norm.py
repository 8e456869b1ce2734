"""``conditional_batch_norm`` beside batch norm, product, sum and ReLU: the layer between BigGAN's convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem

EPS, MOMENTUM = 1e-5, 0.1


class ConditionalBatchNorm(Case):
    op = "conditional_batch_norm"
    differentiable = ("x", "gain", "bias")
    layouts = ("contiguous", "channels_last")
    problems = (
        Problem(
            "8x64x16x16 training",
            {"shape": (8, 64, 16, 16)},
            modes=("forward", "forward+backward", "double backward"),
        ),
        Problem("64x256x32x32 training", {"shape": (64, 256, 32, 32)}, quick=True),
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        n, c = problem["shape"][:2]
        inputs = {
            "x": make.normal(*problem["shape"], shift=0.5),
            "gain": make.statistics(n, c),
            "bias": make.normal(n, c, scale=0.1).float(),
            "running_mean": make.statistics(c),
            "running_var": make.statistics(c),
        }
        return inputs | {"x": _off_the_kink(inputs)}

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        return tuple(inputs.values()), {"training": True, "momentum": MOMENTUM, "eps": EPS, "activation": "relu"}

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        return (F.relu(_normalised(inputs)).to(inputs["x"].dtype),)

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        n, c, h, w = problem["shape"]
        # As for batch norm: x twice and y; then x and grad_y twice and grad_x.
        tensors, operations = {"forward": (3, 8), "forward+backward": (8, 23), "double backward": (18, 62)}[mode]
        return Cost(flops=operations * n * c * h * w, bytes=tensors * n * c * h * w * itemsize)


def _normalised(inputs: Inputs) -> Tensor:
    x, gain, bias, mean, var = inputs.values()
    y = F.batch_norm(x, mean, var, None, None, True, MOMENTUM, EPS)
    return y * gain[:, :, None, None] + bias[:, :, None, None]


def _off_the_kink(inputs: Inputs) -> Tensor:
    """x, such that no pre-activation is near zero: there the last bit would decide whether a gradient passes."""
    y = _normalised({name: value.double() for name, value in inputs.items()})
    return inputs["x"] + (0.1 * y.sign() * (y.abs() < 0.01)).to(inputs["x"].dtype)


CASE = ConditionalBatchNorm()
