"""``conv2d``: layers of discriminators and encoders with bias and LeakyReLU, and bare 3x3, 1x1,
grouped and depthwise ones."""

from __future__ import annotations

from benchmarks.convolution import Convolution, problem

LEAKY = {"activation": "leaky_relu", "negative_slope": 0.2}


class Conv2d(Convolution):
    op = "conv2d"
    problems = (
        problem((16, 64, 16, 16), (64, 64, 3, 3), padding=1),
        problem((64, 64, 32, 32), (64, 64, 3, 3), padding=1, quick=True, **LEAKY),
        problem((64, 128, 16, 16), (256, 128, 4, 4), stride=2, padding=1, **LEAKY),
        problem((64, 3, 64, 64), (64, 3, 4, 4), stride=2, padding=1, **LEAKY),
        problem((16, 256, 16, 16), (256, 256, 1, 1)),
        problem((16, 128, 32, 32), (128, 32, 3, 3), padding=1, groups=4),
        problem((16, 128, 32, 32), (128, 1, 3, 3), padding=1, groups=128),
    )


CASE = Conv2d()
