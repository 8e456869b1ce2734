"""3D-GAN: volumes from vectors, by transposed convolutions in three dimensions.

Wu, Zhang, Xue, Freeman and Tenenbaum, "Learning a Probabilistic Latent Space of Object Shapes via 3D
Generative-Adversarial Modeling", 2016, section 3 and figure 1: generator 17,569,664 parameters, discriminator
11,048,832. z comes from U(0, 1), as in the authors' code; none of the convolutions has a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from gencore.models.registry import register_model
from gencore.nn.block import conv_norm_act
from gencore.nn.layers import Layers, get_layers


@dataclass(frozen=True)
class GAN3DConfig:
    """What distinguishes one 3D-GAN from another.

    Attributes:
        resolution: edge of the volume in voxels; 4 times a power of two, 8 at least.
        channels: of the volume, 1 for occupancy.
        latent: length of z.
        width: channels of the layer next to the volume; they double at every halving of the resolution.
        negative_slope: of the discriminator's LeakyReLU.
    """

    resolution: int = 64
    channels: int = 1
    latent: int = 200
    width: int = 64
    negative_slope: float = 0.2

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution != 4 << len(self.widths):
            raise ValueError(f"GAN3D: resolution must be 8, 16, 32, ...; got {self.resolution}")

    @property
    def widths(self) -> list[int]:
        """Channels at each resolution from the one next to the volume down to 4x4x4."""
        return [self.width << i for i in range((self.resolution // 4).bit_length() - 1)]


DOUBLE = {"kernel_size": 4, "stride": 2, "padding": 1}


class Up(nn.Module):
    """x ``[N, C, D, H, W]`` -> ``[N, out, 2D, 2H, 2W]``, or one voxel -> 4x4x4."""

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, **conv: int) -> None:
        super().__init__()
        self.conv = layers.ConvTranspose3d(in_channels, out_channels, **conv, bias=False)
        self.norm = layers.BatchNorm3d(out_channels, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm_act(self.conv, self.norm, x)


class Down(nn.Module):
    """x ``[N, C, D, H, W]`` -> ``[N, out, D/2, H/2, W/2]``."""

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, slope: float) -> None:
        super().__init__()
        self.conv = layers.Conv3d(in_channels, out_channels, **DOUBLE, bias=False)
        self.norm = layers.BatchNorm3d(out_channels, activation="leaky_relu", negative_slope=slope)

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm_act(self.conv, self.norm, x)


class Generator(nn.Module):
    """z ``[N, latent]`` -> occupancy ``[N, channels, R, R, R]`` in [0, 1]."""

    def __init__(self, config: GAN3DConfig, layers: Layers) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.project = Up(layers, config.latent, widths[0], kernel_size=4)
        self.up = nn.ModuleList(Up(layers, wide, narrow, **DOUBLE) for wide, narrow in pairwise(widths))
        self.to_volume = layers.ConvTranspose3d(widths[-1], config.channels, **DOUBLE, bias=False, activation="sigmoid")

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z[:, :, None, None, None])
        for stage in self.up:
            x = stage(x)
        return self.to_volume(x)


class Discriminator(nn.Module):
    """Occupancy ``[N, channels, R, R, R]`` in [0, 1] -> logits ``[N]``: positive means "real"."""

    def __init__(self, config: GAN3DConfig, layers: Layers) -> None:
        super().__init__()
        widths = [config.channels, *config.widths]
        self.down = nn.ModuleList(Down(layers, a, b, config.negative_slope) for a, b in pairwise(widths))
        self.to_logit = layers.Conv3d(widths[-1], 1, kernel_size=4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.down:
            x = stage(x)
        return self.to_logit(x).flatten()


@register_model(gan3d_64=GAN3DConfig(), gan3d_32=GAN3DConfig(resolution=32))
class GAN3D(nn.Module):
    """Both networks, as ``.generator`` and ``.discriminator``; called, it is the generator."""

    def __init__(self, config: GAN3DConfig, layers: str | Layers = "gencore") -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config, get_layers(layers))
        self.discriminator = Discriminator(config, get_layers(layers))
        self.reset_parameters()

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def sample_latent(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``[count, latent]`` from U(0, 1), on the model's device and in its dtype."""
        weight = next(self.parameters())
        return torch.rand(count, self.config.latent, dtype=weight.dtype, device=weight.device, generator=generator)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights from N(0, 0.02^2) and batch norm's from N(1, 0.02^2), DCGAN's."""
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.normal_(1, 0.02)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0, 0.02)
