"""``conv1d``: layers of a WaveGAN's discriminator, kernel 25, stride 4, with bias and LeakyReLU, and a bare one."""

from __future__ import annotations

from benchmarks.cases.conv2d import LEAKY
from benchmarks.convolution import Convolution, problem

DOWN = {"stride": 4, "padding": 11, **LEAKY}


class Conv1d(Convolution):
    op = "conv1d"
    layouts = ("contiguous",)
    problems = (
        problem((16, 64, 4096), (64, 64, 9), padding=4),
        problem((16, 1, 16384), (64, 1, 25), **DOWN),
        problem((16, 64, 4096), (128, 64, 25), quick=True, **DOWN),
    )


CASE = Conv1d()
