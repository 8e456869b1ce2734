"""``conv3d``: a layer of a volumetric U-Net, and one of a 3D-GAN's discriminator, with bias and LeakyReLU."""

from __future__ import annotations

from benchmarks.cases.conv2d import LEAKY
from benchmarks.convolution import Convolution, problem


class Conv3d(Convolution):
    op = "conv3d"
    problems = (
        problem((2, 32, 16, 48, 48), (64, 32, 3, 3, 3), padding=1, quick=True, **LEAKY),
        problem((4, 64, 32, 32, 32), (128, 64, 4, 4, 4), stride=2, padding=1, **LEAKY),
    )


CASE = Conv3d()
