"""Launches to compile: every kernel, in the specialisations that training and generation use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gencore.kernels import batch_norm_act as bn
from gencore.kernels import conv
from gencore.kernels import reparameterize_kl as kl

HALF, FLOAT = torch.bfloat16, torch.float32


def _reparameterize(dtype: torch.dtype, rows: int, columns: int, backward: bool) -> Callable[[], None]:
    def launch() -> None:
        x = torch.empty((rows, columns), dtype=dtype)
        seed, row = torch.zeros(1, dtype=torch.int64), torch.empty(rows)
        if backward:
            kl.reparameterize_kl_backward(x, row, x, x, seed, True, x, x)
        else:
            kl.reparameterize_kl(x, x, seed, True, x, row)

    return launch


LEAKY_RELU, SILU = 2, 4


def _batch_norm(
    dtype: torch.dtype, *shape: int, channels_last: bool = False, activation: int = LEAKY_RELU, residual: bool = False
) -> Callable[[], None]:
    """Training, forward and backward: five kernels."""

    def launch() -> None:
        x = torch.empty(shape, dtype=dtype)
        r = torch.empty(shape, dtype=dtype) if residual else None
        c = torch.empty(shape[1])
        config = (True, 1e-5, activation, 0.2, channels_last)
        bn.batch_norm_act(x, r, c, c, c, c, *config, x)
        bn.batch_norm_act_backward(x, x, r, c, c, c, c, *config, x, r, c, c)

    return launch


def _conv(dtype: torch.dtype, transposed: bool) -> Callable[[], None]:
    """A generator's layer, 256 to 128 channels, 4x4, stride 2: forward with an epilogue, and the weight's gradient."""

    def launch() -> None:
        x, y = (torch.empty(s, dtype=dtype) for s in ((64, 256, 16, 16), (64, 128, 32, 32)))
        if not transposed:
            x, y = y, x
        x, y = (t.contiguous(memory_format=torch.channels_last) for t in (x, y))
        weight, bias = torch.empty((256, 128, 4, 4), dtype=dtype), torch.empty(y.shape[1], dtype=dtype)
        geometry = ((2, 2), (1, 1), (1, 1))
        scale = torch.empty(y.shape[:2], dtype=dtype)
        conv.convolution(x, weight, bias, None, None, scale, *geometry, 1, transposed, LEAKY_RELU, 0.2, y)
        dense, gathered = (x, y) if transposed else (y, x)
        conv.convolution_weight_gradient(dense, gathered, (4, 4), *geometry, 1)

    return launch


# Each of these compiles for four machines: enough to see every kernel, width and layout, few enough to take a minute.
LAUNCHES: dict[str, Callable[[], None]] = {
    "reparameterize_kl float32 1024x512": _reparameterize(FLOAT, 1024, 512, False),
    "reparameterize_kl bfloat16 16x16384, two stages": _reparameterize(HALF, 16, 16384, False),
    "reparameterize_kl float32 4096x2^20, 64-bit offsets": _reparameterize(FLOAT, 4096, 2**20, False),
    "reparameterize_kl_backward bfloat16 1024x512": _reparameterize(HALF, 1024, 512, True),
    "batch_norm_act float32 64x128x32x32": _batch_norm(FLOAT, 64, 128, 32, 32),
    "batch_norm_act bfloat16 64x128x32x32, channels_last": _batch_norm(HALF, 64, 128, 32, 32, channels_last=True),
    "batch_norm_act bfloat16 256x512x4x4, SiLU, residual": _batch_norm(
        HALF, 256, 512, 4, 4, activation=SILU, residual=True
    ),
    "batch_norm_act bfloat16 64x128x512x512, 64-bit offsets": _batch_norm(HALF, 64, 128, 512, 512),
    "conv_transpose2d bfloat16 64x256x16x16, 128 channels": _conv(HALF, True),
    "conv2d float32 64x128x32x32, 256 channels": _conv(FLOAT, False),
}
