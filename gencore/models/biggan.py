"""BigGAN: class-conditional residual networks with a shared class embedding, hierarchical z and self-attention.

Brock, Donahue and Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", 2019, appendix B.
Parameters, generator / discriminator: 70,433,988 / 87,982,370 (``biggan_128``), 82,235,844 / 99,225,890
(``biggan_256``), 82,468,068 / 99,401,282 (``biggan_512_released``), 4,304,387 / 4,207,361 (``biggan_32``, for CIFAR-10:
no shared embedding, no hierarchy).

``biggan_512`` is the paper's table 6 (85,613,796 / 144,195,362). The code that was released differs: its discriminator
doubles the channels one block later and has 16 ch but once, and its first linear layer does not see the class
embedding; that is ``biggan_512_released``. ``biggan_128`` and ``biggan_256`` are as released: in the paper's tables 4
and 5 the first linear layer sees the class embedding too, and at 256x256 the generator has its attention at 128x128,
which ``linear_sees_class=True`` and ``generator_attention=128`` make.
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
from gencore.ops._checks import check_classes


@dataclass(frozen=True)
class BigGANConfig:
    """What distinguishes one BigGAN from another.

    Attributes:
        resolution: height and width of the images, 4 times a power of two.
        channels: of the images.
        classes: number of classes.
        width: ch, the unit of the two tables.
        generator: channels at 4x4 and after each block of the generator, in units of ``width``.
        discriminator: channels after each block of the discriminator, in the same units; all but the last halve the
            resolution, or ``halvings`` of them.
        halvings: None for all but one.
        shared: length of the class embedding that all norms share; 0: every norm has embeddings of its own.
        chunk: length of the parts of z, of which the first layer and every block get one; 0: the first gets all.
        latent: length of z where ``chunk`` is 0.
        linear_sees_class: the first linear layer gets the class embedding beside its chunk.
        attention: resolution of the self-attention in both networks; 0 for none.
        generator_attention: of the generator's, where it is another one.
    """

    resolution: int = 128
    channels: int = 3
    classes: int = 1000
    width: int = 96
    generator: tuple[int, ...] = (16, 16, 8, 4, 2, 1)
    discriminator: tuple[int, ...] = (1, 2, 4, 8, 16, 16)
    halvings: int | None = None
    shared: int = 128
    chunk: int = 20
    latent: int = 128
    linear_sees_class: bool = False
    attention: int = 64
    generator_attention: int | None = None

    def __post_init__(self) -> None:
        if self.resolution != 4 << (len(self.generator) - 1):
            raise ValueError(
                f"BigGAN: resolution must be 4 * 2^(number of blocks of the generator), got {self.resolution} "
                f"with generator={self.generator}"
            )
        if self.chunk and not self.shared:
            raise ValueError("BigGAN: chunks of z go beside a shared class embedding; set shared, or chunk=0")
        blocks = len(self.discriminator)
        halvings = blocks - 1 if self.halvings is None else min(self.halvings, blocks)
        halved = [self.resolution >> i for i in range(1, halvings + 1)]
        doubled = [8 << i for i in range(len(self.generator) - 1)]
        if self.generator_attention is None:
            halved = [resolution for resolution in halved if resolution in doubled]
        else:
            check_attention("BigGAN", "generator_attention", self.generator_attention, doubled)
        check_attention("BigGAN", "attention", self.attention, halved)

    @property
    def latent_length(self) -> int:
        return self.chunk * len(self.generator) if self.chunk else self.latent


class BigGANGenerator(nn.Module):
    """z ``[N, latent_length]`` and classes -> images ``[N, channels, R, R]`` in [-1, 1].

    Classes are integers ``[N]``, or embeddings ``[N, shared]`` from :meth:`embed`, between which one can interpolate.
    """

    def __init__(self, config: BigGANConfig, layers: Layers) -> None:
        super().__init__()
        parts = Parts(layers, spectral_norm=True, orthogonal=True)
        widths = [config.width * factor for factor in config.generator]
        self.chunk, self.linear_sees_class = config.chunk, config.linear_sees_class
        self.latent = config.latent_length
        self.shared: nn.Embedding | None = None
        if config.shared:
            self.shared = nn.Embedding(config.classes, config.shared)
            nn.init.orthogonal_(self.shared.weight)
            condition = {"condition": config.chunk + config.shared}
        else:
            condition = {"classes": config.classes}
        first = config.chunk or config.latent
        attention = config.attention if config.generator_attention is None else config.generator_attention
        self.linear = parts.linear(first + config.shared * config.linear_sees_class, 16 * widths[0])
        self.blocks = nn.ModuleDict()  # by the resolution that comes out
        self.attention = nn.ModuleDict()
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            resolution = 8 << i
            self.blocks[str(resolution)] = GeneratorBlock(parts, inputs, outputs, **condition)
            if resolution == attention:
                self.attention[str(resolution)] = parts.attention(outputs)
        self.norm = parts.norm(widths[-1])
        self.to_image = parts.conv(widths[-1], config.channels, activation="tanh")
        parts.batch(self)

    def embed(self, y: Tensor) -> Tensor:
        """Embeddings ``[N, shared]`` of classes ``[N]``; what is one already is passed through."""
        if self.shared is None or y.is_floating_point():
            return y
        check_classes("generator", "y", y, self.shared.num_embeddings)
        return self.shared(y)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        check_latent(z, self.latent)
        check_condition(y, True, len(z), 0 if self.shared is None else self.shared.embedding_dim)
        embedded = self.embed(y)
        chunks = z.split(self.chunk, dim=1) if self.chunk else [z] * (1 + len(self.blocks))
        first = torch.cat([embedded, chunks[0]], 1) if self.linear_sees_class else chunks[0]
        x = self.linear(first).unflatten(1, (-1, 4, 4))
        for (resolution, block), part in zip(self.blocks.items(), chunks[1:], strict=True):
            x = block(x, torch.cat([embedded, part], 1) if self.chunk else embedded)
            if resolution in self.attention:
                x = self.attention[resolution](x)
        return self.to_image(self.norm(x))


_512 = BigGANConfig(
    resolution=512,
    generator=(16, 16, 8, 8, 4, 2, 1, 1),
    discriminator=(1, 2, 4, 8, 8, 16, 16, 16),
    linear_sees_class=True,
)


@register_model(
    biggan_32=BigGANConfig(
        resolution=32,
        classes=10,
        width=64,
        generator=(4, 4, 4, 4),
        discriminator=(4, 4, 4, 4),
        halvings=2,
        shared=0,
        chunk=0,
        attention=0,
    ),
    biggan_128=BigGANConfig(),
    biggan_256=BigGANConfig(resolution=256, generator=(16, 16, 8, 8, 4, 2, 1), discriminator=(1, 2, 4, 8, 8, 16, 16)),
    biggan_512=_512,
    biggan_512_released=replace(_512, discriminator=(1, 1, 2, 4, 8, 8, 16, 16), linear_sees_class=False),
)
class BigGAN(nn.Module):
    """Both networks, as ``.generator`` and ``.discriminator``; called, it is the generator."""

    def __init__(self, config: BigGANConfig, layers: str | Layers = "gencore") -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.classes
        self.generator = BigGANGenerator(config, get_layers(layers))
        widths = [config.width * factor for factor in config.discriminator]
        self.discriminator = ResidualDiscriminator(
            Parts(get_layers(layers), spectral_norm=True, orthogonal=True),
            config.channels,
            widths,
            len(widths) - 1 if config.halvings is None else config.halvings,
            classes=config.classes,
            wide=True,
            attention=(config.resolution // config.attention).bit_length() - 1 if config.attention else 0,
        )

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.generator(z, y)

    def sample_latent(
        self, count: int, *, truncation: float | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """``[count, latent_length]`` from N(0, I), or from the :func:`truncated_normal` of that threshold."""
        if truncation is None:
            return sample_normal(self, count, self.config.latent_length, generator)
        return truncated_normal(self, count, self.config.latent_length, truncation, generator)

    def sample_classes(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``[count]`` classes, each equally likely."""
        return sample_classes(self, count, self.config.classes, generator)


def truncated_normal(
    model: nn.Module, count: int, length: int, threshold: float, generator: torch.Generator | None = None
) -> Tensor:
    """``[count, length]`` from N(0, I) with every value beyond ``threshold`` drawn again: the truncation trick.

    A smaller threshold trades variety for fidelity. (Values come from the inverse of the distribution's function, which
    gives the law that drawing again gives, in one go.) Give the generator standing statistics afterwards:
    :func:`gencore.nn.utils.statistics.standing_statistics`.

    Raises:
        ValueError: ``threshold`` is not positive.

    Reference:
        Brock, Donahue and Simonyan, 2019, section 3.1.
    """
    if not threshold > 0:
        raise ValueError(f"truncated_normal: threshold must be positive, got {threshold}")
    weight = next(model.parameters())
    inside = torch.erf(torch.tensor(threshold / 2**0.5, dtype=torch.float64)).item()
    uniform = torch.empty(count, length, dtype=torch.float64, device=weight.device).uniform_(
        -inside, inside, generator=generator
    )
    return (2**0.5 * torch.erfinv(uniform)).clamp(-threshold, threshold).to(weight.dtype)
