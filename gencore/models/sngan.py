"""SNGAN and SAGAN: residual networks, kept Lipschitz by spectral norm; SAGAN has it in both, and self-attention.

Miyato, Kataoka, Koyama and Yoshida, "Spectral Normalization for Generative Adversarial Networks", 2018, appendix B.4;
Miyato and Koyama, "cGANs with Projection Discriminator", 2018; Zhang, Goodfellow, Metaxas and Odena, "Self-Attention
Generative Adversarial Networks", 2019.

Parameters, generator / discriminator: 4,276,739 / 1,053,825 (``sngan_32``), for the ten classes of CIFAR-10 4,304,387 /
1,055,105 (``sngan_32_projection``); 32,150,787 / 29,017,857 (``sngan_128``);
41,996,931 / 30,041,857 (``sngan_128_projection``); 42,078,852 / 39,463,618 (``sagan_128``, with attention at the
paper's 32x32; at 64x64, 42,017,412 / 39,448,258).

Of the public code, some up-sample bilinearly, and some let the first ReLU of a block work in place, so that the
shortcut gets its result. Here pixels are doubled, as in the authors' code, and shortcuts take what comes in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from gencore.models.registry import register_model
from gencore.models.residual import (
    GeneratorBlock,
    Parts,
    ResidualDiscriminator,
    check_attention,
    check_condition,
    check_latent,
    sample_classes,
)
from gencore.models.resolutions import sample_normal
from gencore.nn.layers import Layers, get_layers


@dataclass(frozen=True)
class SNGANConfig:
    """What distinguishes one SNGAN or SAGAN from another.

    Attributes:
        resolution: height and width of the images, 4 times a power of two.
        channels: of the images.
        latent: length of z.
        classes: number of classes; 0 for an unconditional network.
        generator: channels at 4x4, and after each block of the generator, which doubles the resolution.
        discriminator: channels after each block of the discriminator.
        halvings: how many of these blocks, from the first, halve the resolution.
        wide: in the discriminator, see :class:`~gencore.models.residual.ResidualDiscriminator`.
        spectral_norm: of the discriminator's weights; without it, the network is an ordinary residual GAN.
        generator_spectral_norm: of the generator's weights.
        attention: resolution of the self-attention in both networks; 0 for none.
    """

    resolution: int = 32
    channels: int = 3
    latent: int = 128
    classes: int = 0
    generator: tuple[int, ...] = (256, 256, 256, 256)
    discriminator: tuple[int, ...] = (128, 128, 128, 128)
    halvings: int = 2
    wide: bool = False
    spectral_norm: bool = True
    generator_spectral_norm: bool = False
    attention: int = 0

    def __post_init__(self) -> None:
        if self.resolution != 4 << (len(self.generator) - 1):
            raise ValueError(
                f"SNGAN: resolution must be 4 * 2^(number of blocks of the generator), got {self.resolution} "
                f"with generator={self.generator}"
            )
        halvings = min(self.halvings, len(self.discriminator))
        halved = [self.resolution >> i for i in range(1, halvings + 1) if self.resolution >> i >= 8]
        check_attention("SNGAN", "attention", self.attention, halved)


class SNGANGenerator(nn.Module):
    """z ``[N, latent]``, and classes ``[N]`` if there are any -> images ``[N, channels, R, R]`` in [-1, 1]."""

    def __init__(self, config: SNGANConfig, layers: Layers) -> None:
        super().__init__()
        parts = Parts(layers, config.generator_spectral_norm, orthogonal=False)
        widths = config.generator
        self.latent, self.conditional = config.latent, config.classes > 0
        self.linear = parts.linear(config.latent, 16 * widths[0])
        self.blocks = nn.ModuleDict()  # by the resolution that comes out
        self.attention = nn.ModuleDict()
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            resolution = 8 << i
            self.blocks[str(resolution)] = GeneratorBlock(parts, inputs, outputs, classes=config.classes)
            if resolution == config.attention:
                self.attention[str(resolution)] = parts.attention(outputs)
        self.norm = parts.norm(widths[-1])
        self.to_image = parts.conv(widths[-1], config.channels, gain=1.0, activation="tanh")
        parts.batch(self)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        check_latent(z, self.latent)
        check_condition(y, self.conditional, len(z))
        condition = () if y is None else (y,)
        x = self.linear(z).unflatten(1, (-1, 4, 4))
        for resolution, block in self.blocks.items():
            x = block(x, *condition)
            if resolution in self.attention:
                x = self.attention[resolution](x)
        return self.to_image(self.norm(x))


_128 = SNGANConfig(
    resolution=128,
    generator=(1024, 1024, 512, 256, 128, 64),
    discriminator=(64, 128, 256, 512, 1024, 1024),
    halvings=5,
)


@register_model(
    sngan_32=SNGANConfig(),
    sngan_32_projection=SNGANConfig(classes=10),
    sngan_128=_128,
    sngan_128_projection=replace(_128, classes=1000),
    sagan_128=replace(_128, classes=1000, wide=True, generator_spectral_norm=True, attention=32),
)
class SNGAN(nn.Module):
    """Both networks, as ``.generator`` and ``.discriminator``; called, it is the generator."""

    def __init__(self, config: SNGANConfig, layers: str | Layers = "gencore") -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.classes
        self.generator = SNGANGenerator(config, get_layers(layers))
        self.discriminator = ResidualDiscriminator(
            Parts(get_layers(layers), config.spectral_norm, orthogonal=False),
            config.channels,
            config.discriminator,
            config.halvings,
            classes=config.classes,
            wide=config.wide,
            attention=(config.resolution // config.attention).bit_length() - 1 if config.attention else 0,
        )

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.generator(z, y)

    def sample_latent(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``[count, latent]`` from N(0, I), on the model's device and in its dtype."""
        return sample_normal(self, count, self.config.latent, generator)

    def sample_classes(self, count: int, *, generator: torch.Generator | None = None) -> Tensor | None:
        """``[count]`` classes, each equally likely; None without classes."""
        return sample_classes(self, count, self.config.classes, generator) if self.config.classes else None
