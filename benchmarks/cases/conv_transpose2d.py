"""``conv_transpose2d``: the layers of a DCGAN's generator, kernel 4, stride 2, padding 1, without an epilogue."""

from __future__ import annotations

from benchmarks.convolution import Convolution, problem

UP = {"stride": 2, "padding": 1, "transposed": True}


class ConvTranspose2d(Convolution):
    op = "conv_transpose2d"
    problems = (
        problem((16, 128, 16, 16), (128, 64, 4, 4), **UP),
        problem((64, 512, 8, 8), (512, 256, 4, 4), quick=True, **UP),
        problem((64, 256, 16, 16), (256, 128, 4, 4), **UP),
        problem((64, 128, 32, 32), (128, 64, 4, 4), **UP),
        problem((64, 128, 32, 32), (128, 3, 4, 4), **UP),
    )


CASE = ConvTranspose2d()
