"""ProGAN: networks that grow while they train, from 4x4 to 1024x1024.

Karras, Aila, Laine and Lehtinen, "Progressive Growing of GANs for Improved Quality, Stability, and Variation", 2018,
table 2 and figure 2. 23.1 million parameters each (1024x1024: generator 23,079,115, discriminator 23,087,249).

All layers exist from the start; :meth:`ProGAN.grow` says which are in use. Layers that are not get no gradient, so Adam
leaves them alone, and growing changes nothing about the state of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional
from torch import Tensor, nn

import gencore.functional as F
from gencore.models.registry import register_model
from gencore.models.resolutions import check_config, resolutions, sample_normal, width
from gencore.nn import (
    Blur,
    EqualizedConv2d,
    EqualizedConvDownscale2d,
    FullyConnected,
    MinibatchStdDev,
    PixelNorm,
    UpscaleEqualizedConv2d,
)
from gencore.nn.layers import Layers, get_layers

# The gain of a LeakyReLU sits in the weights of these networks, and in the activation of StyleGAN2.
HE: dict[str, Any] = {"weight_gain": 2**0.5, "act_gain": 1.0}


@dataclass(frozen=True)
class ProGANConfig:
    """What distinguishes one ProGAN from another.

    Attributes:
        resolution: height and width of the images once grown, a power of two from 4 to 1024.
        channels: of the images.
        latent: length of z.
        channel_budget: a layer has this many channels divided by its resolution,
        max_channels: but at most this many.
    """

    resolution: int = 1024
    channels: int = 3
    latent: int = 512
    channel_budget: int = 16384
    max_channels: int = 512

    def __post_init__(self) -> None:
        check_config(self)

    def width(self, resolution: int) -> int:
        """Channels of the layers at this resolution."""
        return width(resolution, self.channel_budget, self.max_channels)


class Growing(nn.Module):
    """A network whose last resolution grows; that is part of its ``state_dict``.

    What decides which layers run is kept as plain values, which compiled code is specialised on; alpha comes from the
    buffer, so that a fade-in runs in one graph.
    """

    stage: Tensor

    def __init__(self, top: int) -> None:
        super().__init__()
        self.resolutions = resolutions(top)
        self.register_buffer("stage", torch.tensor([top, 1.0], dtype=torch.float64))
        self.resolution, self.alpha, self.fading = top, 1.0, False
        self.register_load_state_dict_post_hook(_read_stage)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """The stage keeps its dtype where the network changes its own: in bfloat16, 0.999 would be 1."""
        super()._apply(fn, recurse)
        if self.stage.dtype != torch.float64:
            self.stage = torch.tensor([self.resolution, self.alpha], dtype=torch.float64, device=self.stage.device)
        return self

    def grow(self, resolution: int, alpha: float = 1.0) -> None:
        """Use the layers up to ``resolution``, those of that resolution itself with the weight ``alpha``.

        Args:
            resolution: 4, 8, ... up to the configuration's.
            alpha: 0 (as before they were added, but for doubled pixels) to 1 (they alone).

        Raises:
            ValueError: if either is out of range.
        """
        if resolution not in self.resolutions:
            raise ValueError(f"grow: resolution must be one of {self.resolutions}, got {resolution}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"grow: alpha must be in [0, 1], got {alpha}")
        self.resolution, self.alpha = int(resolution), 1.0 if resolution == 4 else float(alpha)
        self.fading = self.alpha < 1
        self.stage[0], self.stage[1] = self.resolution, self.alpha

    def now(self) -> tuple[int, float]:
        """Resolution and alpha."""
        return self.resolution, self.alpha

    def in_use(self) -> list[int]:
        """The resolutions whose layers are in use, rising."""
        return self.resolutions[: self.resolutions.index(self.resolution) + 1]

    def fade(self, before: Tensor, after: Tensor) -> Tensor:
        """``after`` with the weight alpha, ``before`` with the rest."""
        return torch.lerp(before, after, self.stage[1].to(after.dtype))


def _read_stage(network: Growing, _: object) -> None:
    resolution, alpha = network.stage.tolist()
    if resolution in network.resolutions:
        network.grow(int(resolution), alpha)
    else:  # of larger networks: whoever loads them into these hears of that, and the stage remains one of theirs
        network.grow(*network.now())


class FirstBlock(nn.Module):
    """z ``[N, latent]`` -> x ``[N, C, 4, 4]``."""

    def __init__(self, config: ProGANConfig, impl: str) -> None:
        super().__init__()
        self.channels, self.impl = config.width(4), impl
        # The gain is that of a 4x4 convolution of 1x1 "images", which this is.
        self.linear = FullyConnected(config.latent, 16 * self.channels, bias=False, weight_gain=2**0.5 / 4, impl=impl)
        self.bias = nn.Parameter(torch.zeros(self.channels))
        self.conv = EqualizedConv2d(self.channels, self.channels, 3, activation="lrelu", **HE, impl=impl)
        self.norm = PixelNorm(impl=impl)

    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(self.norm(z)).view(len(z), self.channels, 4, 4)
        x = self.norm(F.bias_act(x, self.bias, act="lrelu", gain=1, impl=self.impl))
        return self.norm(self.conv(x))


class UpBlock(nn.Module):
    """x ``[N, in, H, W]`` -> ``[N, out, 2H, 2W]``."""

    def __init__(self, in_channels: int, out_channels: int, impl: str) -> None:
        super().__init__()
        self.conv0 = UpscaleEqualizedConv2d(in_channels, out_channels, 3, activation="lrelu", **HE, impl=impl)
        self.conv1 = EqualizedConv2d(out_channels, out_channels, 3, activation="lrelu", **HE, impl=impl)
        self.norm = PixelNorm(impl=impl)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv0(x))
        return self.norm(self.conv1(x))


class Generator(Growing):
    """z ``[N, latent]`` -> images ``[N, channels, R, R]`` at the present resolution R, about in [-1, 1]."""

    def __init__(self, config: ProGANConfig, impl: str) -> None:
        super().__init__(config.resolution)
        self.blocks = nn.ModuleDict({"4": FirstBlock(config, impl)})
        self.to_rgb = nn.ModuleDict()
        for r in self.resolutions:
            if r > 4:
                self.blocks[str(r)] = UpBlock(config.width(r // 2), config.width(r), impl)
            self.to_rgb[str(r)] = EqualizedConv2d(config.width(r), config.channels, 1, impl=impl)

    def forward(self, z: Tensor) -> Tensor:
        x = before = z
        for r in self.in_use():
            before, x = x, self.blocks[str(r)](x)
        image = self.to_rgb[str(self.resolution)](x)
        if self.fading:
            image = self.fade(double(self.to_rgb[str(self.resolution // 2)](before)), image)
        return image


class DownBlock(nn.Module):
    """x ``[N, in, H, W]`` -> ``[N, out, H/2, W/2]``; with ``blur`` as StyleGAN has it."""

    def __init__(self, in_channels: int, out_channels: int, blur: bool, impl: str) -> None:
        super().__init__()
        self.conv0 = EqualizedConv2d(in_channels, in_channels, 3, activation="lrelu", **HE, impl=impl)
        # The mean of four pixels is taken before the bias where the blur comes first, else after the activation.
        conv = EqualizedConvDownscale2d if blur else EqualizedConv2d
        self.conv1 = conv(in_channels, out_channels, 3, activation="lrelu", **HE, impl=impl)
        self.blur = Blur((1, 2, 1), impl=impl) if blur else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        if self.blur is None:
            return halve(self.conv1(x))
        return self.conv1(self.blur(x))


class LastBlock(nn.Module):
    """x ``[N, C, 4, 4]`` -> logits ``[N]``, after the standard deviation over groups of samples is appended."""

    def __init__(self, channels: int, group_size: int, impl: str) -> None:
        super().__init__()
        self.compare = MinibatchStdDev(group_size, impl=impl)
        self.conv = EqualizedConv2d(channels + 1, channels, 3, activation="lrelu", **HE, impl=impl)
        self.linear = FullyConnected(16 * channels, channels, activation="lrelu", **HE, impl=impl)
        self.to_logit = FullyConnected(channels, 1, impl=impl)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.compare(x))
        return self.to_logit(self.linear(x.flatten(1))).flatten()


class Discriminator(Growing):
    """Images ``[N, channels, R, R]`` at the present resolution R -> logits ``[N]``; 4 must divide N (or N be less)."""

    def __init__(self, config: ProGANConfig, impl: str, *, blur: bool = False) -> None:
        super().__init__(config.resolution)
        self.from_rgb = nn.ModuleDict()
        self.blocks = nn.ModuleDict()
        for r in reversed(self.resolutions):
            self.from_rgb[str(r)] = EqualizedConv2d(
                config.channels, config.width(r), 1, activation="lrelu", **HE, impl=impl
            )
            if r > 4:
                self.blocks[str(r)] = DownBlock(config.width(r), config.width(r // 2), blur, impl)
        self.blocks["4"] = LastBlock(config.width(4), 4, impl)

    def forward(self, images: Tensor) -> Tensor:
        resolution = self.resolution
        if images.dim() != 4 or images.shape[2:] != (resolution, resolution):
            raise RuntimeError(
                f"Discriminator: images must be [N, C, {resolution}, {resolution}] at this stage of growth, got "
                f"{tuple(images.shape)}"
            )
        x = self.from_rgb[str(resolution)](images)
        for r in reversed(self.in_use()):
            x = self.blocks[str(r)](x)
            if r == resolution and self.fading:
                x = self.fade(self.from_rgb[str(r // 2)](halve(images)), x)
        return x


def double(x: Tensor) -> Tensor:
    """Every pixel four times."""
    return torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


def halve(x: Tensor) -> Tensor:
    """The mean of every four pixels."""
    return torch.nn.functional.avg_pool2d(x, 2)


@register_model(
    progan_32=ProGANConfig(resolution=32),
    progan_64=ProGANConfig(resolution=64),
    progan_128=ProGANConfig(resolution=128),
    progan_256=ProGANConfig(resolution=256),
    progan_512=ProGANConfig(resolution=512),
    progan_1024=ProGANConfig(),
)
class ProGAN(nn.Module):
    """Both networks, as ``.generator`` and ``.discriminator``; called, it is the generator."""

    def __init__(self, config: ProGANConfig, layers: str | Layers = "gencore") -> None:
        super().__init__()
        self.config = config
        impl = get_layers(layers).impl
        self.generator = Generator(config, impl)
        self.discriminator = Discriminator(config, impl)

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def grow(self, resolution: int, alpha: float = 1.0) -> None:
        """:meth:`Growing.grow` of both networks."""
        self.generator.grow(resolution, alpha)
        self.discriminator.grow(resolution, alpha)

    def sample_latent(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``[count, latent]`` from N(0, I), on the model's device and in its dtype."""
        return sample_normal(self, count, self.config.latent, generator)
