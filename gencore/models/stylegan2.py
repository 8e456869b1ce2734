"""StyleGAN2, configuration F: modulated convolutions, a generator of skips, a residual discriminator.

Karras, Laine, Aittala, Hellsten, Lehtinen and Aila, "Analyzing and Improving the Image Quality of StyleGAN", 2020,
figures 2 and 7. Parameters, generator / discriminator: 30,370,060 / 29,012,513 at 1024 x 1024, 30,034,338 / 28,864,129
at 256 x 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gencore.models.registry import register_model
from gencore.models.resolutions import check_config, resolutions, sample_normal, width
from gencore.models.styles import MappingNetwork, Noise, StyleGenerator, check_styles
from gencore.nn import EqualizedConv2d, FullyConnected, MinibatchStdDev, ModulatedConv2d, Upsample2d
from gencore.nn.layers import Layers, get_layers


@dataclass(frozen=True)
class StyleGAN2Config:
    """What distinguishes one StyleGAN2 from another.

    Attributes:
        resolution: height and width of the images, a power of two from 4 to 1024.
        channels: of the images.
        latent: length of z.
        style: length of w.
        mapping_layers: depth of the mapping network.
        channel_budget: a layer has this many channels divided by its resolution,
        max_channels: but at most this many.
        clamp: bound of every convolution's output (256 for training in float16), or None.
    """

    resolution: int = 256
    channels: int = 3
    latent: int = 512
    style: int = 512
    mapping_layers: int = 8
    channel_budget: int = 32768
    max_channels: int = 512
    clamp: float | None = None

    def __post_init__(self) -> None:
        check_config(self, "style", "mapping_layers")

    def width(self, resolution: int) -> int:
        """Channels of the layers at this resolution."""
        return width(resolution, self.channel_budget, self.max_channels)

    @property
    def layers(self) -> int:
        """The number of styles: one for each convolution of the generator, and one for its last skip."""
        return 2 * len(resolutions(self.resolution))


class SynthesisBlock(nn.Module):
    """x ``[N, in, H, W]`` and its image -> x ``[N, out, 2H, 2W]`` and its image. The first block starts from nothing.

    A block's image is the doubled one of the block before plus what its skip adds.
    """

    def __init__(self, config: StyleGAN2Config, resolution: int, impl: str) -> None:
        super().__init__()
        channels = config.width(resolution)
        options: dict[str, Any] = {"clamp": config.clamp, "impl": impl}
        if resolution == 4:
            self.const = nn.Parameter(torch.randn(channels, 4, 4))
        else:
            self.conv0 = ModulatedConv2d(
                config.width(resolution // 2), channels, 3, config.style, up=2, noise_resolution=resolution, **options
            )
            self.upsample = Upsample2d(impl=impl)
        self.conv1 = ModulatedConv2d(channels, channels, 3, config.style, noise_resolution=resolution, **options)
        self.to_rgb = ModulatedConv2d(
            channels, config.channels, 1, config.style, demodulate=False, activation="linear", **options
        )
        self.first = resolution == 4

    def forward(self, x: Tensor | None, image: Tensor | None, styles: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        if x is None or image is None:
            x = self.const.expand(len(styles), -1, -1, -1)
        else:
            x = self._convolve(self.conv0, x, styles[:, 0], noise)
            image = self.upsample(image)
        x = self._convolve(self.conv1, x, styles[:, -2], noise)
        added = self.to_rgb(x, styles[:, -1])
        return x, added if image is None else image + added

    def _convolve(self, conv: ModulatedConv2d, x: Tensor, style: Tensor, noise: Noise) -> Tensor:
        drawn = noise.draw(len(x), conv.noise_const)
        return conv(x, style, "none" if drawn is None else drawn)


class Synthesis(nn.Module):
    """Styles ``[N, layers, style]`` -> images ``[N, channels, resolution, resolution]``."""

    def __init__(self, config: StyleGAN2Config, impl: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({str(r): SynthesisBlock(config, r, impl) for r in resolutions(config.resolution)})

    def forward(self, styles: Tensor, noise: Noise | str = "random") -> Tensor:
        check_styles(styles, 2 * len(self.blocks))
        noise = Noise.of(noise)
        x = image = None
        for i, block in enumerate(self.blocks.values()):
            # A block's skip shares its style with the first convolution of the next block.
            x, image = block(x, image, styles[:, max(2 * i - 1, 0) : 2 * i + 2], noise)
        assert image is not None
        return image


class ResidualBlock(nn.Module):
    """x ``[N, in, H, W]`` -> ``[N, out, H/2, W/2]``: two convolutions beside one of size 1, at equal variance."""

    def __init__(self, in_channels: int, out_channels: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.conv0 = EqualizedConv2d(in_channels, in_channels, 3, activation="lrelu", **options)
        self.conv1 = EqualizedConv2d(in_channels, out_channels, 3, activation="lrelu", down=2, **options)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, bias=False, down=2, impl=options["impl"])

    def forward(self, x: Tensor) -> Tensor:
        half = 0.5**0.5
        return self.skip(x, gain=half) + self.conv1(self.conv0(x), gain=half)


class Discriminator(nn.Module):
    """Images ``[N, channels, resolution, resolution]`` -> logits ``[N]``: positive means "real".

    Four samples (or all, if there are fewer) are compared by their standard deviation: 4 must divide N.
    """

    def __init__(self, config: StyleGAN2Config, impl: str) -> None:
        super().__init__()
        options: dict[str, Any] = {"clamp": config.clamp, "impl": impl}
        top, last = config.resolution, config.width(4)
        self.resolution = top
        self.from_rgb = EqualizedConv2d(config.channels, config.width(top), 1, activation="lrelu", **options)
        self.blocks = nn.ModuleDict(
            {
                str(r): ResidualBlock(config.width(r), config.width(r // 2), options)
                for r in reversed(resolutions(top)[1:])
            }
        )
        self.compare = MinibatchStdDev(4, impl=impl)  # [N, C, 4, 4] -> [N, C + 1, 4, 4]
        self.conv = EqualizedConv2d(last + 1, last, 3, activation="lrelu", **options)
        self.linear = FullyConnected(last * 16, last, activation="lrelu", impl=impl)
        self.to_logit = FullyConnected(last, 1, impl=impl)

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[2:] != (self.resolution, self.resolution):
            raise RuntimeError(
                f"Discriminator: images must be [N, C, {self.resolution}, {self.resolution}], got {tuple(images.shape)}"
            )
        x = self.from_rgb(images)
        for block in self.blocks.values():
            x = block(x)
        x = self.conv(self.compare(x))
        return self.to_logit(self.linear(x.flatten(1))).flatten()


@register_model(
    stylegan2_32=StyleGAN2Config(resolution=32, mapping_layers=2),
    stylegan2_64=StyleGAN2Config(resolution=64, channel_budget=16384),
    stylegan2_128=StyleGAN2Config(resolution=128, channel_budget=16384),
    stylegan2_256=StyleGAN2Config(),
    stylegan2_256_half=StyleGAN2Config(channel_budget=16384),
    stylegan2_512=StyleGAN2Config(resolution=512),
    stylegan2_1024=StyleGAN2Config(resolution=1024),
)
class StyleGAN2(nn.Module):
    """Both networks, as ``.generator`` and ``.discriminator``; called, it is the generator."""

    def __init__(self, config: StyleGAN2Config, layers: str | Layers = "gencore") -> None:
        super().__init__()
        self.config = config
        impl = get_layers(layers).impl
        mapping = MappingNetwork(config.latent, config.style, config.mapping_layers, config.layers, impl=impl)
        self.generator = StyleGenerator(mapping, Synthesis(config, impl))
        self.discriminator = Discriminator(config, impl)

    def forward(
        self, z: Tensor, *, truncation: float = 1.0, cutoff: int | None = None, noise: Noise | str = "random"
    ) -> Tensor:
        return self.generator(z, truncation=truncation, cutoff=cutoff, noise=noise)

    def sample_latent(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``[count, latent]`` from N(0, I), on the model's device and in its dtype."""
        return sample_normal(self, count, self.config.latent, generator)
