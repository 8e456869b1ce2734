"""What other projects call the weights of the same networks, and in which shapes they keep them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gencore.models.progan import ProGANConfig
from gencore.models.resolutions import resolutions
from gencore.models.stylegan import StyleGANConfig
from gencore.models.stylegan2 import StyleGAN2Config

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """One tensor: our name, theirs, and the way there and back; ``optional`` in their files, or not.

    ``read`` raises a ValueError on values that mean nothing.
    """

    ours: str
    theirs: str
    write: Map = lambda t: t
    read: Map = lambda t: t
    optional: bool = False


@dataclass(frozen=True)
class Constant:
    """A buffer of theirs that is no weight: left out when reading, made when writing."""

    theirs: str
    make: Callable[[], Tensor]


Names = Iterator[Entry | Constant]


def _weight_and_bias(ours: str, theirs: str) -> Names:
    for name in ("weight", "bias"):
        yield Entry(f"{ours}.{name}", f"{theirs}.{name}")


def _taps(*taps: float, gain: float = 1.0) -> Callable[[], Tensor]:
    def make() -> Tensor:
        row = torch.tensor(taps)
        return torch.outer(row, row) / row.sum() ** 2 * gain

    return make


# --- StyleGAN2 -------------------------------------------------------------------------------------------------------


def stylegan2_ada_generator(config: StyleGAN2Config) -> Names:
    """stylegan2-ada-pytorch's ``G``, as its ``state_dict`` has it."""
    for i in range(config.mapping_layers):
        yield from _weight_and_bias(f"mapping.layers.{i}", f"mapping.fc{i}")
    yield Entry("mapping.w_avg", "mapping.w_avg")
    for r in resolutions(config.resolution):
        ours, theirs = f"synthesis.blocks.{r}", f"synthesis.b{r}"
        yield Constant(f"{theirs}.resample_filter", _taps(1, 3, 3, 1))
        if r == 4:
            yield Entry(f"{ours}.const", f"{theirs}.const")
        for conv in ["conv1"] if r == 4 else ["conv0", "conv1"]:
            yield from _weight_and_bias(f"{ours}.{conv}", f"{theirs}.{conv}")
            yield from _weight_and_bias(f"{ours}.{conv}.affine", f"{theirs}.{conv}.affine")
            yield Entry(f"{ours}.{conv}.noise_strength", f"{theirs}.{conv}.noise_strength")
            yield Entry(f"{ours}.{conv}.noise_const", f"{theirs}.{conv}.noise_const")
            yield Constant(f"{theirs}.{conv}.resample_filter", _taps(1, 3, 3, 1))
        yield from _weight_and_bias(f"{ours}.to_rgb", f"{theirs}.torgb")
        yield from _weight_and_bias(f"{ours}.to_rgb.affine", f"{theirs}.torgb.affine")


def stylegan2_ada_discriminator(config: StyleGAN2Config) -> Names:
    """stylegan2-ada-pytorch's ``D``."""
    yield from _weight_and_bias("from_rgb", f"b{config.resolution}.fromrgb")
    yield Constant(f"b{config.resolution}.fromrgb.resample_filter", _taps(1, 3, 3, 1))
    for r in reversed(resolutions(config.resolution)[1:]):
        for conv in ("conv0", "conv1"):
            yield from _weight_and_bias(f"blocks.{r}.{conv}", f"b{r}.{conv}")
            yield Constant(f"b{r}.{conv}.resample_filter", _taps(1, 3, 3, 1))
        yield Entry(f"blocks.{r}.skip.weight", f"b{r}.skip.weight")
        yield Constant(f"b{r}.skip.resample_filter", _taps(1, 3, 3, 1))
        yield Constant(f"b{r}.resample_filter", _taps(1, 3, 3, 1))
    yield from _weight_and_bias("conv", "b4.conv")
    yield Constant("b4.conv.resample_filter", _taps(1, 3, 3, 1))
    yield from _weight_and_bias("linear", "b4.fc")
    yield from _weight_and_bias("to_logit", "b4.out")


def rosinality_generator(config: StyleGAN2Config) -> Names:
    """rosinality/stylegan2-pytorch's ``g`` and ``g_ema``. The average style is kept beside them, as ``latent_avg``."""
    for i in range(config.mapping_layers):
        yield from _weight_and_bias(f"mapping.layers.{i}", f"style.{i + 1}")  # 0 normalises z
    yield Entry("synthesis.blocks.4.const", "input.input", lambda t: t[None], lambda t: t[0])
    yield from _rosinality_conv("synthesis.blocks.4.conv1", "conv1", 0)
    yield from _rosinality_rgb("synthesis.blocks.4.to_rgb", "to_rgb1")
    for i, r in enumerate(resolutions(config.resolution)[1:]):
        ours = f"synthesis.blocks.{r}"
        yield from _rosinality_conv(f"{ours}.conv0", f"convs.{2 * i}", 2 * i + 1)
        yield Constant(f"convs.{2 * i}.conv.blur.kernel", _taps(1, 3, 3, 1, gain=4))
        yield from _rosinality_conv(f"{ours}.conv1", f"convs.{2 * i + 1}", 2 * i + 2)
        yield from _rosinality_rgb(f"{ours}.to_rgb", f"to_rgbs.{i}")
        yield Constant(f"to_rgbs.{i}.upsample.kernel", _taps(1, 3, 3, 1, gain=4))


def _rosinality_conv(ours: str, theirs: str, number: int) -> Names:
    yield Entry(f"{ours}.weight", f"{theirs}.conv.weight", lambda t: t[None], lambda t: t[0])
    yield from _weight_and_bias(f"{ours}.affine", f"{theirs}.conv.modulation")
    yield Entry(f"{ours}.bias", f"{theirs}.activate.bias")
    yield Entry(f"{ours}.noise_strength", f"{theirs}.noise.weight", lambda t: t.view(1), lambda t: t.view([]))
    # The first of their files have no constant noise, and their scripts load them none the less.
    noise = (f"{ours}.noise_const", f"noises.noise_{number}")
    yield Entry(*noise, lambda t: t[None, None], lambda t: t[0, 0], optional=True)


def _rosinality_rgb(ours: str, theirs: str) -> Names:
    yield Entry(f"{ours}.weight", f"{theirs}.conv.weight", lambda t: t[None], lambda t: t[0])
    yield from _weight_and_bias(f"{ours}.affine", f"{theirs}.conv.modulation")
    yield Entry(f"{ours}.bias", f"{theirs}.bias", lambda t: t.view(1, -1, 1, 1), lambda t: t.flatten())


def rosinality_discriminator(config: StyleGAN2Config) -> Names:
    """rosinality/stylegan2-pytorch's ``d``."""
    yield Entry("from_rgb.weight", "convs.0.0.weight")
    yield Entry("from_rgb.bias", "convs.0.1.bias")
    for i, r in enumerate(reversed(resolutions(config.resolution)[1:]), start=1):
        ours, theirs = f"blocks.{r}", f"convs.{i}"
        yield Entry(f"{ours}.conv0.weight", f"{theirs}.conv1.0.weight")
        yield Entry(f"{ours}.conv0.bias", f"{theirs}.conv1.1.bias")
        yield Constant(f"{theirs}.conv2.0.kernel", _taps(1, 3, 3, 1))
        yield Entry(f"{ours}.conv1.weight", f"{theirs}.conv2.1.weight")
        yield Entry(f"{ours}.conv1.bias", f"{theirs}.conv2.2.bias")
        yield Constant(f"{theirs}.skip.0.kernel", _taps(1, 3, 3, 1))
        yield Entry(f"{ours}.skip.weight", f"{theirs}.skip.1.weight")
    yield Entry("conv.weight", "final_conv.0.weight")
    yield Entry("conv.bias", "final_conv.1.bias")
    yield from _weight_and_bias("linear", "final_linear.0")
    yield from _weight_and_bias("to_logit", "final_linear.1")


# --- ProGAN and StyleGAN ---------------------------------------------------------------------------------------------


def genforce_progan_generator(config: ProGANConfig) -> Names:
    """genforce's PGGAN generator. Its first layer is a convolution that pads a 1x1 image by 3: ours turned round."""
    channels, latent = config.width(4), config.latent
    yield Entry(
        "blocks.4.linear.weight",
        "layer0.weight",
        lambda t: t.view(channels, 4, 4, latent).permute(0, 3, 1, 2).flip(2, 3),
        lambda t: t.flip(2, 3).permute(0, 2, 3, 1).reshape(16 * channels, latent),
    )
    yield Entry("blocks.4.bias", "layer0.bias")
    yield from _weight_and_bias("blocks.4.conv", "layer1")
    for i, r in enumerate(resolutions(config.resolution)):
        if r > 4:
            yield from _weight_and_bias(f"blocks.{r}.conv0", f"layer{2 * i}")
            yield from _weight_and_bias(f"blocks.{r}.conv1", f"layer{2 * i + 1}")
        yield from _weight_and_bias(f"to_rgb.{r}", f"output{i}")
    yield _genforce_stage("stage", "lod", config)


def genforce_progan_discriminator(config: ProGANConfig) -> Names:
    """genforce's PGGAN discriminator."""
    falling = resolutions(config.resolution)[::-1]
    for i, r in enumerate(falling):
        yield from _weight_and_bias(f"from_rgb.{r}", f"input{i}")
        first, second = ("conv0", "conv1") if r > 4 else ("conv", "linear")
        yield from _weight_and_bias(f"blocks.{r}.{first}", f"layer{2 * i}")
        yield from _weight_and_bias(f"blocks.{r}.{second}", f"layer{2 * i + 1}")
    yield from _weight_and_bias("blocks.4.to_logit", f"layer{2 * len(falling)}")
    yield _genforce_stage("stage", "lod", config)


def genforce_stylegan_generator(config: StyleGANConfig) -> Names:
    """genforce's StyleGAN generator."""
    for i in range(config.mapping_layers):
        yield from _weight_and_bias(f"mapping.layers.{i}", f"mapping.dense{i}")
    yield Entry("mapping.w_avg", "truncation.w_avg")
    for i, r in enumerate(resolutions(config.resolution)):
        ours = f"synthesis.blocks.{r}"
        for j in (0, 1):
            theirs = f"synthesis.layer{2 * i + j}"
            if r == 4 and j == 0:
                yield Entry(f"{ours}.const", f"{theirs}.const", lambda t: t[None], lambda t: t[0])
            else:
                yield Entry(f"{ours}.conv{j}.weight", f"{theirs}.weight")
            if r > 4 and j == 0:
                yield _genforce_blur(f"{theirs}.blur.kernel", config.width(r))
            yield Entry(f"{ours}.style{j}.bias", f"{theirs}.bias")
            yield Entry(f"{ours}.style{j}.noise.weight", f"{theirs}.apply_noise.weight")
            noise = (f"{ours}.style{j}.noise_const", f"{theirs}.apply_noise.noise")
            yield Entry(*noise, lambda t: t[None, None], lambda t: t[0, 0])
            yield from _weight_and_bias(f"{ours}.style{j}.affine", f"{theirs}.style")
        yield from _weight_and_bias(f"synthesis.to_rgb.{r}", f"synthesis.output{i}")
    yield _genforce_stage("synthesis.stage", "synthesis.lod", config)


def genforce_stylegan_discriminator(config: StyleGANConfig) -> Names:
    """genforce's StyleGAN discriminator: the PGGAN's, with filters."""
    yield from genforce_progan_discriminator(config)
    for i, r in enumerate(reversed(resolutions(config.resolution)[1:])):
        yield _genforce_blur(f"layer{2 * i + 1}.blur.kernel", config.width(r))


def _genforce_stage(ours: str, theirs: str, config: ProGANConfig) -> Entry:
    """How far a network has grown: "lod" counts the halvings of its resolution, a fraction where one fades in.

    A resolution with alpha 0 is the one before in doubled pixels, and there it is that one.
    """
    top = config.resolution

    def write(stage: Tensor) -> Tensor:
        resolution, alpha = stage.tolist()
        return torch.tensor(math.log2(top / resolution) + 1 - alpha)

    def read(lod: Tensor) -> Tensor:
        value, most = lod.item(), len(resolutions(top)) - 1
        if not 0 <= value <= most:
            raise ValueError(f"{theirs} must be in [0, {most}], got {value}")
        halvings = math.floor(value)
        return torch.tensor([top >> halvings, 1 - (value - halvings)], dtype=torch.float64)

    return Entry(ours, theirs, write, read, optional=True)


def _genforce_blur(theirs: str, channels: int) -> Constant:
    return Constant(theirs, lambda: _taps(1, 2, 1)().expand(channels, 1, 3, 3).clone())
