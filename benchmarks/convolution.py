"""What the benchmark cases of the convolution family share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem


def problem(shape: Sequence[int], weight: Sequence[int], *, quick: bool = False, **options: Any) -> Problem:
    """One layer: ``shape`` of the input and ``weight``; ``options`` as the op takes them."""
    kernel = "x".join(map(str, weight[2:]))
    channels = weight[1] if options.pop("transposed", False) else weight[0]
    name = f"{'x'.join(map(str, shape))} to {channels}, {kernel}"
    name += "".join(f", {key} {value}" for key, value in options.items() if key in ("stride", "groups", "activation"))
    return Problem(name, {"shape": tuple(shape), "weight": tuple(weight), "options": options}, quick=quick)


class Convolution(Case):
    """``conv1d`` to ``conv_transpose3d``; with an activation, the bias and a LeakyReLU follow in eager as ops."""

    differentiable = ("x", "weight")
    layouts = ("contiguous", "channels_last")

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        inputs = {"x": make.normal(*problem["shape"]), "weight": make.normal(*problem["weight"], scale=0.02)}
        if "activation" in problem["options"]:
            # So that no sum is near the kink, where the last bit would decide between two slopes.
            signs = torch.arange(problem["weight"][0]) % 2 * 2 - 1
            spread = 0.02 * prod(problem["weight"][1:]) ** 0.5
            inputs["bias"] = make.lay_out((8 * spread * signs).to(make.device, make.dtype))
        return inputs

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        return tuple(inputs.values()), dict(problem["options"])

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        options = dict(problem["options"])
        slope = options.pop("negative_slope", 0.01)
        fused = options.pop("activation", None)
        y = getattr(F, self.op)(*inputs.values(), **options)
        return (F.leaky_relu_(y, slope) if fused else y,)

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        shape, weight = problem["shape"], problem["weight"]
        options = {k: v for k, v in problem["options"].items() if k not in ("activation", "negative_slope")}
        x, w = torch.empty(shape, device="meta"), torch.empty(weight, device="meta")
        y = getattr(F, self.op)(x, w, **options)
        pixels = (x if "transpose" in self.op else y)[:, 0].numel()
        # The backward forms two more products of the same size, and reads and writes what the forward did, twice.
        times = 3 if mode == "forward+backward" else 1
        numbers = x.numel() + w.numel() + y.numel()
        return Cost(flops=2 * times * pixels * w.numel(), bytes=times * numbers * itemsize)
