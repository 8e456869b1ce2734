"""``modulated_conv2d`` beside both ways of writing it in PyTorch.

``eager`` is a grouped convolution with a weight for every sample; ``scale, convolve, scale`` an ordinary one between
two scalings of its channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

import gencore.functional
from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem


def _convolution(name: str, n: int, channels: int, size: int, quick: bool = False) -> Problem:
    return Problem(name, {"n": n, "channels": channels, "size": size, "up": 1, "activation": None}, quick=quick)


def _layer(name: str, n: int, channels: int, size: int, up: int, activation: str, quick: bool = False) -> Problem:
    """With noise, bias and activation. Gradients are compared where no kink lets the last bit choose between slopes."""
    sizes = {"n": n, "channels": channels, "size": size, "up": up, "activation": activation}
    return Problem(name, sizes, quick=quick, modes=("forward",) if activation == "lrelu" else None)


class ModulatedConv2d(Case):
    op = "modulated_conv2d"
    differentiable = ("x", "weight", "style")
    layouts = ("contiguous", "channels_last")
    problems = (
        _layer("layer, swish, 2x16x8x8", 2, 16, 8, 1, "swish"),
        _convolution("convolution 8x512x16x16", 8, 512, 16, quick=True),
        _convolution("convolution 4x256x64x64", 4, 256, 64),
        _convolution("convolution 4x128x128x128", 4, 128, 128),
        _layer("layer, up 2, 8x512x8x8", 8, 512, 8, 2, "lrelu"),
        _layer("layer, up 2, 4x256x32x32", 4, 256, 32, 2, "lrelu"),
        _layer("layer, up 2, 4x128x64x64", 4, 128, 64, 2, "lrelu"),
        _layer("layer, up 2, swish, 4x256x32x32", 4, 256, 32, 2, "swish"),
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        n, c, size = problem["n"], problem["channels"], problem["size"]
        inputs = {
            "x": make.normal(n, c, size, size),
            "weight": make.normal(c, c, 3, 3),
            "style": make.normal(n, c, scale=0.3, shift=1.0),
        }
        if problem["up"] > 1:
            inputs["resample_filter"] = gencore.functional.setup_filter([1, 3, 3, 1], device=make.device)
        if problem["activation"]:
            out = size * problem["up"]
            inputs |= {"noise": make.normal(n, 1, out, out, scale=0.1), "bias": make.normal(c, scale=0.1)}
        return inputs

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        up = problem["up"]
        options = {"up": up, "padding": 1, "flip_weight": up == 1, "activation": problem["activation"] or "linear"}
        return (inputs["x"], inputs["weight"], inputs["style"]), {**dict(list(inputs.items())[3:]), **options}

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        """A weight for every sample."""
        x, weight, style = inputs["x"], inputs["weight"], inputs["style"]
        n, c, h, w = x.shape
        own = weight * style[:, None, :, None, None]
        own = own * (own.square().sum([2, 3, 4], keepdim=True) + 1e-8).rsqrt()
        x = x.reshape(1, n * c, h, w)
        if problem["up"] == 1:
            y = F.conv2d(x, own.flatten(0, 1), padding=1, groups=n)
        else:
            y = F.conv_transpose2d(x, own.transpose(1, 2).flatten(0, 1), stride=2, groups=n)
        y = y.reshape(n, -1, *y.shape[2:])
        return (_rest(problem, inputs, y),)

    def peers(self, problem: Problem) -> dict[str, Callable[[Inputs], Outputs]]:
        def scaled(inputs: Inputs) -> Outputs:
            x, weight, style = inputs["x"], inputs["weight"], inputs["style"]
            factor = (style.square() @ weight.square().sum([2, 3]).t() + 1e-8).rsqrt()
            x = x * style[:, :, None, None]
            if problem["up"] == 1:
                y = F.conv2d(x, weight, padding=1)
            else:
                y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            return (_rest(problem, inputs, y * factor[:, :, None, None]),)

        return {"scale, convolve, scale": scaled}

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        n, c, size, up = problem["n"], problem["channels"], problem["size"], problem["up"]
        products = 2 * 9 * n * c * c * size * size
        pixels = n * c * size * size
        tensors, times = (1 + up * up, 1) if mode == "forward" else (3 * (1 + up * up), 3)
        return Cost(flops=times * products, bytes=(tensors * pixels + times * 9 * c * c) * itemsize)


def _rest(problem: Problem, inputs: Inputs, y: Tensor) -> Tensor:
    """Filter, noise, bias and activation."""
    if problem["up"] > 1:
        kernel = (inputs["resample_filter"] * 4).to(y.dtype)[None, None].repeat(y.shape[1], 1, 1, 1)
        y = F.conv2d(y, kernel.flip([2, 3]), padding=1, groups=y.shape[1])
    if not problem["activation"]:
        return y
    y = y + inputs["noise"] + inputs["bias"][:, None, None]
    return (F.silu(y) if problem["activation"] == "swish" else F.leaky_relu(y, 0.2)) * 2**0.5


CASE = ModulatedConv2d()
