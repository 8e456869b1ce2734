"""``conv_transpose1d``: layers of a WaveGAN's generator, kernel 25, stride 4."""

from __future__ import annotations

from benchmarks.convolution import Convolution, problem

UP = {"stride": 4, "padding": 11, "output_padding": 1, "transposed": True}


class ConvTranspose1d(Convolution):
    op = "conv_transpose1d"
    layouts = ("contiguous",)
    problems = (
        problem((4, 256, 64), (256, 128, 25), **UP),
        problem((16, 512, 64), (512, 256, 25), **UP),
        problem((16, 128, 1024), (128, 64, 25), quick=True, **UP),
    )


CASE = ConvTranspose1d()
