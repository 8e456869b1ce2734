"""``conv2d_downscale2d``: the second convolutions of SAGAN's and SNGAN's discriminators, beside PyTorch's two ops."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Inputs, Problem
from benchmarks.cases.upscale2d_conv2d import Rescaled, problem


class Conv2dDownscale2d(Rescaled):
    op = "conv2d_downscale2d"
    problems = (
        problem((16, 64, 16, 16), 64),
        problem((64, 128, 32, 32), 128, quick=True),
        problem((8, 256, 32, 32), 256),
        problem((8, 64, 128, 128), 64),
    )

    def eager(self, problem: Problem, inputs: Inputs) -> tuple[Tensor, ...]:
        return (F.avg_pool2d(F.conv2d(inputs["x"], inputs["weight"], padding=1), 2),)


CASE = Conv2dDownscale2d()
