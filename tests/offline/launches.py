"""Launches to compile: every kernel, in the specialisations that training and generation use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gencore.kernels import batch_norm_act as bn
from gencore.kernels import bias_act as ba
from gencore.kernels import conv
from gencore.kernels import minibatch_stddev as mbstd
from gencore.kernels import pixel_norm as pn
from gencore.kernels import reparameterize_kl as kl
from gencore.kernels import self_attention as attention
from gencore.kernels import spectral_norm as sn
from gencore.kernels import upfirdn2d as fir

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


RELU, LEAKY_RELU, SILU = 1, 2, 4


def _batch_norm(
    dtype: torch.dtype,
    *shape: int,
    channels_last: bool = False,
    activation: int = LEAKY_RELU,
    residual: bool = False,
    per_sample: bool = False,
    instance: bool = False,
) -> Callable[[], None]:
    """Training, forward and backward: five kernels."""

    def launch() -> None:
        x = torch.empty(shape, dtype=dtype)
        r = torch.empty(shape, dtype=dtype) if residual else None
        w = torch.empty(shape[:2] if per_sample or instance else shape[1:2])
        c = torch.empty(shape[:2] if instance else shape[1:2])
        config = (True, per_sample or instance, instance, 1e-5, activation, 0.2, channels_last)
        bn.batch_norm_act(x, r, w, w, c, c, *config, x)
        bn.batch_norm_act_backward(x, x, r, w, w, c, c, *config, x, r, w, w)

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


def _bias_act(
    dtype: torch.dtype, *shape: int, channels_last: bool = False, epilogue: bool = False, clamp: float = -1.0
) -> Callable[[], None]:
    """Forward and backward: bias alone (three kernels), or the epilogue of a modulated convolution (five)."""

    def launch() -> None:
        batch, channels, pixels = shape
        x, b = torch.empty(shape, dtype=dtype), torch.empty(channels)
        scale, noise = (torch.empty(batch, channels), torch.empty(batch, pixels)) if epilogue else (None, None)
        config = (LEAKY_RELU, 0.2, 2**0.5, clamp, channels_last)
        ba.bias_act(x, scale, noise, b, *shape, *config, x)
        ba.bias_act_backward(x, x, scale, noise, b, *shape, *config, x, scale, noise, b)

    return launch


def _pixel_norm(dtype: torch.dtype, outer: int, channels: int, inner: int) -> Callable[[], None]:
    """Forward and backward."""

    def launch() -> None:
        x = torch.empty((outer, channels, inner), dtype=dtype)
        pn.pixel_norm(x, outer, channels, inner, 1e-8, x)
        pn.pixel_norm_backward(x, x, outer, channels, inner, 1e-8, x)

    return launch


def _minibatch_stddev(
    dtype: torch.dtype, batch: int, channels: int, pixels: int, maps: int = 1, channels_last: bool = False
) -> Callable[[], None]:
    """Forward and backward, groups of four: four kernels."""

    def launch() -> None:
        x, y = (torch.empty((batch, c, pixels), dtype=dtype) for c in (channels, channels + maps))
        sizes = (batch, channels, pixels, 4, maps, 1e-8, channels_last)
        mbstd.minibatch_stddev(x, *sizes, y)
        mbstd.minibatch_stddev_backward(y, x, *sizes, x)

    return launch


def _upfirdn2d(
    dtype: torch.dtype,
    *shape: int,
    up: int = 1,
    down: int = 1,
    taps: tuple[int, ...] = (4, 4),
    channels_last: bool = False,
) -> Callable[[], None]:
    def launch() -> None:
        n, c, h, w = shape
        x, y = torch.empty(shape, dtype=dtype), torch.empty((n, c, h * up // down, w * up // down), dtype=dtype)
        fir.upfirdn2d(x, torch.empty(taps), up, up, down, down, 2, 2, False, 1.0, channels_last, y)

    return launch


def _attention(
    dtype: torch.dtype, batch: int, queries: int, keys: int, width: int, values: int, backward: bool
) -> Callable[[], None]:
    """Of feature maps, [batch, width, positions]; the backward is four kernels."""

    def launch() -> None:
        shapes = ((width, queries), (width, keys), (values, keys), (values, queries))
        query, key, value, out = (torch.empty((batch, *shape), dtype=dtype).mT for shape in shapes)
        row = torch.empty((batch, queries))
        if backward:
            attention.self_attention_backward(out, query, key, value, out, row, row, 1.0, query, key, value)
        else:
            attention.self_attention(query, key, value, 1.0, out, row, row)

    return launch


def spectral_norm(
    dtype: torch.dtype, *shapes: tuple[int, ...], dim: int = 0, written: bool = True
) -> Callable[[], None]:
    """One training iteration of all layers and its backward: two kernels, however many layers there are."""

    def launch() -> None:
        weights = [torch.empty(shape, dtype=dtype) for shape in shapes]
        sigma, dims = torch.empty(len(shapes)), [dim] * len(shapes)
        vectors = torch.empty(sum(w.shape[dim] + w.numel() // w.shape[dim] for w in weights))
        normal = weights if written else [torch.empty(0, dtype=dtype)] * len(shapes)
        sn.spectral_norm(weights, vectors, 1, 1e-12, dims, True, normal, sigma)
        sn.spectral_norm_backward(normal, sigma, weights, sigma, vectors, 1e-12, dims, weights)

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
    "bias_act float32 8x128x16384": _bias_act(FLOAT, 8, 128, 16384),
    "bias_act bfloat16 8x512x256, channels_last, clamped": _bias_act(
        HALF, 8, 512, 256, channels_last=True, clamp=256.0
    ),
    "bias_act float32 8x128x16384, epilogue": _bias_act(FLOAT, 8, 128, 16384, epilogue=True),
    "bias_act bfloat16 8x512x256, epilogue, channels_last": _bias_act(
        HALF, 8, 512, 256, channels_last=True, epilogue=True
    ),
    "pixel_norm float32 8x512x32x32": _pixel_norm(FLOAT, 8, 512, 1024),
    "pixel_norm bfloat16 4x128x128x128": _pixel_norm(HALF, 4, 128, 16384),
    "pixel_norm float32 4x2048x8x8, looped": _pixel_norm(FLOAT, 4, 2048, 64),
    "pixel_norm bfloat16 8x512x32x32, channels_last": _pixel_norm(HALF, 8192, 512, 1),
    "pixel_norm float32 256x16x1024x1024, 64-bit offsets": _pixel_norm(FLOAT, 256, 16, 2**20),
    "minibatch_stddev float32 8x512x4x4": _minibatch_stddev(FLOAT, 8, 512, 16),
    "minibatch_stddev bfloat16 8x512x4x4, channels_last": _minibatch_stddev(HALF, 8, 512, 16, channels_last=True),
    "minibatch_stddev float32 8x512x4x4, two maps, channels_last": _minibatch_stddev(
        FLOAT, 8, 512, 16, 2, channels_last=True
    ),
    "upfirdn2d float32 8x128x64x64, up": _upfirdn2d(FLOAT, 8, 128, 64, 64, up=2),
    "upfirdn2d bfloat16 8x128x128x128, down": _upfirdn2d(HALF, 8, 128, 128, 128, down=2),
    "upfirdn2d bfloat16 8x128x64x64, up, channels_last": _upfirdn2d(HALF, 8, 128, 64, 64, up=2, channels_last=True),
    "upfirdn2d float32 8x32x256x256, 12 taps": _upfirdn2d(FLOAT, 8, 32, 256, 256, up=2, taps=(12,)),
    "self_attention bfloat16 64x64, C=64": _attention(HALF, 16, 4096, 1024, 8, 32, False),
    "self_attention float32 64x64, C=192": _attention(FLOAT, 16, 4096, 1024, 24, 96, False),
    "self_attention_backward bfloat16 64x64, C=64": _attention(HALF, 16, 4096, 1024, 8, 32, True),
    "self_attention_backward float32 64x64, C=192": _attention(FLOAT, 16, 4096, 1024, 24, 96, True),
    "spectral_norm float32 1536x1536x3x3": spectral_norm(FLOAT, (1536, 1536, 3, 3)),
    "spectral_norm bfloat16 512x256x4x4 and 256x128x4x4, transposed": spectral_norm(
        HALF, (512, 256, 4, 4), (256, 128, 4, 4), dim=1
    ),
    "spectral_norm float32 SNGAN-32's discriminator, sigma only": spectral_norm(
        FLOAT, (128, 3, 3, 3), (128, 3, 1, 1), *[(128, 128, 3, 3)] * 7, (128, 128, 1, 1), (1, 128), written=False
    ),
    "spectral_norm bfloat16 50000x50000, 64-bit offsets": spectral_norm(HALF, (50000, 50000)),
    "conditional_batch_norm bfloat16 16x256x64x64, ReLU": _batch_norm(
        HALF, 16, 256, 64, 64, activation=RELU, per_sample=True
    ),
    "conditional_batch_norm float32 64x256x32x32, channels_last": _batch_norm(
        FLOAT, 64, 256, 32, 32, activation=RELU, per_sample=True, channels_last=True
    ),
    "instance_norm_act float32 8x128x64x64": _batch_norm(FLOAT, 8, 128, 64, 64, activation=RELU, instance=True),
    "instance_norm_act bfloat16 8x128x64x64, channels_last, residual": _batch_norm(
        HALF, 8, 128, 64, 64, channels_last=True, residual=True, instance=True
    ),
}
