"""BigGAN-deep: BigGAN with two bottleneck blocks a resolution, whose shortcuts hold no weights but for new channels.

Brock, Donahue and Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", 2019, appendix B,
figure 16 and tables 7 to 9. Parameters, generator / discriminator: 50,244,484 / 34,590,210 (``biggan_deep_128``),
55,736,708 / 38,247,426 (``biggan_deep_256``), 56,019,780 / 38,301,122 (``biggan_deep_512``).

The generators that were released compute 128 channels in the last layer and drop all but 3, and their norms have
another eps: ``biggan_deep_128_released`` (50,388,609), ``..._256_released`` (55,880,833), ``..._512_released``
(56,163,905).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencore.models.biggan import truncated_normal
from gencore.models.registry import register_model
from gencore.models.residual import (
    Parts,
    ProjectionHead,
    check_attention,
    check_condition,
    check_latent,
    sample_classes,
    upsample,
)
from gencore.models.resolutions import sample_normal
from gencore.nn.layers import Layers, get_layers
from gencore.ops._checks import check_classes


@dataclass(frozen=True)
class BigGANDeepConfig:
    """What distinguishes one BigGAN-deep from another.

    Attributes:
        resolution: height and width of the images, 4 times a power of two.
        channels: of the images.
        classes: number of classes.
        width: ch, the unit of the two tables.
        generator: channels at 4x4 and at each resolution above, in units of ``width``.
        discriminator: channels at the full resolution and at each one below, down to 4x4, in the same units.
        latent: length of z, which goes whole to every norm.
        shared: length of the class embedding.
        attention: resolution of the self-attention in both networks.
        computed: channels of the generator's last layer, of which the image is the first ones; 0: the image's alone.
        eps: of the norms.
    """

    resolution: int = 128
    channels: int = 3
    classes: int = 1000
    width: int = 128
    generator: tuple[int, ...] = (16, 16, 8, 4, 2, 1)
    discriminator: tuple[int, ...] = (1, 2, 4, 8, 16, 16)
    latent: int = 128
    shared: int = 128
    attention: int = 64
    computed: int = 0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name, table in (("generator", self.generator), ("discriminator", self.discriminator)):
            if self.resolution != 4 << (len(table) - 1):
                raise ValueError(
                    f"BigGAN-deep: {name} must have an entry for each resolution from 4 to {self.resolution}, "
                    f"got {table}"
                )
        there_are = [8 << i for i in range(len(self.generator) - 2)]
        check_attention("BigGAN-deep", "attention", self.attention, there_are)


class DeepGeneratorBlock(nn.Module):
    """x ``[N, in, H, W]`` -> ``[N, out, H, W]``, or twice the size (``up``), out <= in: four times norm, ReLU and
    convolution, in a quarter of the channels. The shortcut drops the last channels."""

    def __init__(self, parts: Parts, inputs: int, outputs: int, condition: int, *, up: bool) -> None:
        super().__init__()
        hidden = inputs // 4
        self.outputs, self.up = outputs, up
        self.norms = nn.ModuleList(parts.norm(c, condition=condition) for c in (inputs, hidden, hidden, hidden))
        self.conv1 = parts.conv(inputs, hidden, 1)
        self.conv2 = parts.conv_up(hidden, hidden) if up else parts.conv(hidden, hidden)
        self.conv3, self.conv4 = parts.conv(hidden, hidden), parts.conv(hidden, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.norms[1](self.conv1(self.norms[0](x, condition)), condition)
        h = self.norms[2](self.conv2(h), condition)
        h = self.norms[3](self.conv3(h), condition)
        kept = x[:, : self.outputs]
        return self.conv4(h, residual=(upsample(kept) if self.up else kept).contiguous())


class DeepDiscriminatorBlock(nn.Module):
    """x ``[N, in, H, W]`` -> ``[N, out, H, W]``, or half the size (``down``), out >= in: four times ReLU and
    convolution. The shortcut is x with new channels from a 1x1 convolution."""

    def __init__(self, parts: Parts, inputs: int, outputs: int, *, down: bool) -> None:
        super().__init__()
        hidden = outputs // 4
        self.down = down
        self.conv1 = parts.conv(inputs, hidden, 1, activation="relu")
        self.conv2 = parts.conv(hidden, hidden, activation="relu")
        self.conv3, self.conv4 = parts.conv(hidden, hidden, activation="relu"), parts.conv(hidden, outputs, 1)
        self.skip = parts.conv(inputs, outputs - inputs, 1) if outputs > inputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv3(self.conv2(self.conv1(F.relu(x))))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return self.conv4(h, residual=x if self.skip is None else torch.cat([x, self.skip(x)], 1))


class BigGANDeepGenerator(nn.Module):
    """z ``[N, latent]`` and classes ``[N]`` (or embeddings ``[N, shared]``) -> images in [-1, 1]."""

    def __init__(self, config: BigGANDeepConfig, layers: Layers) -> None:
        super().__init__()
        parts = Parts(layers, spectral_norm=True, orthogonal=True, eps=config.eps)
        widths, condition = [config.width * factor for factor in config.generator], config.latent + config.shared
        self.latent, self.channels = config.latent, config.channels
        self.shared = nn.Embedding(config.classes, config.shared)
        nn.init.orthogonal_(self.shared.weight)
        self.linear = parts.linear(condition, 16 * widths[0])
        self.blocks = nn.ModuleDict()  # pairs, by the resolution that comes out
        self.attention = nn.ModuleDict()
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            resolution = 8 << i
            self.blocks[str(resolution)] = nn.ModuleList(
                (
                    DeepGeneratorBlock(parts, inputs, inputs, condition, up=False),
                    DeepGeneratorBlock(parts, inputs, outputs, condition, up=True),
                )
            )
            if resolution == config.attention:
                self.attention[str(resolution)] = parts.attention(outputs)
        self.norm = parts.norm(widths[-1])
        self.to_image = parts.conv(widths[-1], config.computed or config.channels, activation="tanh")
        parts.batch(self)

    def embed(self, y: Tensor) -> Tensor:
        """Embeddings ``[N, shared]`` of classes ``[N]``; what is one already is passed through."""
        if y.is_floating_point():
            return y
        check_classes("generator", "y", y, self.shared.num_embeddings)
        return self.shared(y)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        check_latent(z, self.latent)
        check_condition(y, True, len(z), self.shared.embedding_dim)
        condition = torch.cat([z, self.embed(y)], 1)
        x = self.linear(condition).unflatten(1, (-1, 4, 4))
        pair: Any
        for resolution, pair in self.blocks.items():
            x = pair[1](pair[0](x, condition), condition)
            if resolution in self.attention:
                x = self.attention[resolution](x)
        return self.to_image(self.norm(x))[:, : self.channels]


class BigGANDeepDiscriminator(nn.Module):
    """Images ``[N, channels, R, R]`` and their classes ``[N]`` -> logits ``[N]``."""

    def __init__(self, config: BigGANDeepConfig, layers: Layers) -> None:
        super().__init__()
        parts = Parts(layers, spectral_norm=True, orthogonal=True)
        widths = [config.width * factor for factor in config.discriminator]
        self.from_image = parts.conv(config.channels, widths[0])
        stages: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            stages.append(DeepDiscriminatorBlock(parts, inputs, outputs, down=True))
            stages.append(DeepDiscriminatorBlock(parts, outputs, outputs, down=False))
            if config.resolution >> (i + 1) == config.attention:
                stages.append(parts.attention(outputs))
        self.stages = nn.Sequential(*stages)
        self.head = ProjectionHead(parts, widths[-1], config.classes)
        parts.batch(self)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.stages(self.from_image(x)), y)


_128 = BigGANDeepConfig()
_256 = BigGANDeepConfig(resolution=256, generator=(16, 16, 8, 8, 4, 2, 1), discriminator=(1, 2, 4, 8, 8, 16, 16))
_512 = BigGANDeepConfig(resolution=512, generator=(16, 16, 8, 8, 4, 2, 1, 1), discriminator=(1, 1, 2, 4, 8, 8, 16, 16))


@register_model(
    biggan_deep_128=_128,
    biggan_deep_256=_256,
    biggan_deep_512=_512,
    biggan_deep_128_released=replace(_128, computed=128, eps=1e-4),
    biggan_deep_256_released=replace(_256, computed=128, eps=1e-4),
    biggan_deep_512_released=replace(_512, computed=128, eps=1e-4),
)
class BigGANDeep(nn.Module):
    """Both networks, as ``.generator`` and ``.discriminator``; called, it is the generator."""

    def __init__(self, config: BigGANDeepConfig, layers: str | Layers = "gencore") -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.classes
        self.generator = BigGANDeepGenerator(config, get_layers(layers))
        self.discriminator = BigGANDeepDiscriminator(config, get_layers(layers))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.generator(z, y)

    def sample_latent(
        self, count: int, *, truncation: float | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """``[count, latent]`` from N(0, I), or from the :func:`~gencore.models.biggan.truncated_normal`."""
        if truncation is None:
            return sample_normal(self, count, self.config.latent, generator)
        return truncated_normal(self, count, self.config.latent, truncation, generator)

    def sample_classes(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``[count]`` classes, each equally likely."""
        return sample_classes(self, count, self.config.classes, generator)
