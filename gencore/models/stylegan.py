"""StyleGAN: a generator that draws from a learned constant, told by styles and noise at every layer what to draw.

Karras, Laine and Aila, "A Style-Based Generator Architecture for Generative Adversarial Networks", 2019, figure 1 and
appendix C. Generator 26,219,627 parameters at 1024x1024; the discriminator is ProGAN's with low-pass filters. Both grow
while they train, as ProGAN does, from 8x8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import gencore.functional as F
from gencore.models.progan import HE, Discriminator, Growing, ProGANConfig, double
from gencore.models.registry import register_model
from gencore.models.resolutions import check_config, sample_normal
from gencore.models.styles import MappingNetwork, Noise, StyleGenerator, check_styles
from gencore.nn import Blur, EqualizedConv2d, FullyConnected, NoiseInjection, UpscaleEqualizedConv2d
from gencore.nn.layers import Layers, get_layers


@dataclass(frozen=True)
class StyleGANConfig(ProGANConfig):
    """What distinguishes one StyleGAN from another, besides what does ProGANs.

    Attributes:
        style: length of w.
        mapping_layers: depth of the mapping network.
    """

    style: int = 512
    mapping_layers: int = 8

    def __post_init__(self) -> None:
        check_config(self, "style", "mapping_layers")

    @property
    def layers(self) -> int:
        """The number of styles, two at each resolution."""
        return 2 * (self.resolution.bit_length() - 2)


class Stylize(nn.Module):
    """x ``[N, C, H, H]``, w ``[N, style]`` -> x with noise, bias and LeakyReLU, then the style's mean and scale."""

    noise_const: Tensor

    def __init__(self, config: StyleGANConfig, resolution: int, impl: str) -> None:
        super().__init__()
        channels = config.width(resolution)
        self.noise = NoiseInjection(channels)
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.affine = FullyConnected(config.style, 2 * channels, impl=impl)
        self.impl = impl

    def forward(self, x: Tensor, w: Tensor, noise: Noise) -> Tensor:
        drawn = noise.draw(len(x), self.noise_const)
        if drawn is not None:
            x = self.noise(x, drawn)
        x = F.bias_act(x, self.bias, act="lrelu", gain=1, impl=self.impl)
        scale, shift = self.affine(w).chunk(2, dim=1)
        return F.instance_norm_act(x, scale + 1, shift, eps=1e-8, impl=self.impl)


class SynthesisBlock(nn.Module):
    """x ``[N, in, H, W]`` -> ``[N, out, 2H, 2W]``; the first block starts from nothing, a learned ``[C, 4, 4]``."""

    def __init__(self, config: StyleGANConfig, resolution: int, impl: str) -> None:
        super().__init__()
        channels = config.width(resolution)
        if resolution == 4:
            self.const = nn.Parameter(torch.ones(channels, 4, 4))
        else:
            self.conv0 = UpscaleEqualizedConv2d(
                config.width(resolution // 2), channels, 3, bias=False, weight_gain=2**0.5, impl=impl
            )
            self.blur = Blur((1, 2, 1), impl=impl)
        self.style0 = Stylize(config, resolution, impl)
        self.conv1 = EqualizedConv2d(channels, channels, 3, bias=False, weight_gain=2**0.5, impl=impl)
        self.style1 = Stylize(config, resolution, impl)

    def forward(self, x: Tensor | None, styles: Tensor, noise: Noise) -> Tensor:
        x = self.const.expand(len(styles), -1, -1, -1) if x is None else self.blur(self.conv0(x))
        x = self.style0(x, styles[:, 0], noise)
        return self.style1(self.conv1(x), styles[:, 1], noise)


class Synthesis(Growing):
    """Styles ``[N, layers, style]`` -> images ``[N, channels, R, R]`` at the present resolution R."""

    def __init__(self, config: StyleGANConfig, impl: str) -> None:
        super().__init__(config.resolution)
        self.blocks = nn.ModuleDict({str(r): SynthesisBlock(config, r, impl) for r in self.resolutions})
        self.to_rgb = nn.ModuleDict(
            {str(r): EqualizedConv2d(config.width(r), config.channels, 1, impl=impl) for r in self.resolutions}
        )

    def forward(self, styles: Tensor, noise: Noise | str = "random") -> Tensor:
        check_styles(styles, 2 * len(self.resolutions))
        noise = Noise.of(noise)
        x = before = None
        for i, r in enumerate(self.in_use()):
            before, x = x, self.blocks[str(r)](x, styles[:, 2 * i : 2 * i + 2], noise)
        image = self.to_rgb[str(self.resolution)](x)
        if self.fading:
            image = self.fade(double(self.to_rgb[str(self.resolution // 2)](before)), image)
        return image


@register_model(
    stylegan_32=StyleGANConfig(resolution=32),
    stylegan_64=StyleGANConfig(resolution=64),
    stylegan_128=StyleGANConfig(resolution=128),
    stylegan_256=StyleGANConfig(resolution=256),
    stylegan_512=StyleGANConfig(resolution=512),
    stylegan_1024=StyleGANConfig(),
)
class StyleGAN(nn.Module):
    """Both networks, as ``.generator`` and ``.discriminator``; called, it is the generator."""

    def __init__(self, config: StyleGANConfig, layers: str | Layers = "gencore") -> None:
        super().__init__()
        self.config = config
        impl = get_layers(layers).impl
        mapping = MappingNetwork(config.latent, config.style, config.mapping_layers, config.layers, impl=impl, **HE)
        self.generator = StyleGenerator(mapping, Synthesis(config, impl))
        self.discriminator = Discriminator(config, impl, blur=True)

    def forward(
        self, z: Tensor, *, truncation: float = 1.0, cutoff: int | None = None, noise: Noise | str = "random"
    ) -> Tensor:
        return self.generator(z, truncation=truncation, cutoff=cutoff, noise=noise)

    def grow(self, resolution: int, alpha: float = 1.0) -> None:
        """:meth:`Growing.grow` of both networks."""
        self.generator.synthesis.grow(resolution, alpha)
        self.discriminator.grow(resolution, alpha)

    def sample_latent(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``[count, latent]`` from N(0, I), on the model's device and in its dtype."""
        return sample_normal(self, count, self.config.latent, generator)
