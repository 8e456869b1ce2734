"""``conv_transpose3d``: layers of a 3D-GAN's generator, kernel 4, stride 2, padding 1."""

from __future__ import annotations

from benchmarks.convolution import Convolution, problem

UP = {"stride": 2, "padding": 1, "transposed": True}


class ConvTranspose3d(Convolution):
    op = "conv_transpose3d"
    problems = (
        problem((1, 128, 8, 8, 8), (128, 64, 4, 4, 4), **UP),
        problem((4, 256, 8, 8, 8), (256, 128, 4, 4, 4), quick=True, **UP),
        problem((4, 128, 16, 16, 16), (128, 64, 4, 4, 4), **UP),
    )


CASE = ConvTranspose3d()
