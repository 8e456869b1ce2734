"""DCGAN: a generator and a discriminator of strided convolutions and batch norm.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", 2016, section 3 and figure 1. Two forms are in use:

* the paper's, with 5x5 kernels and 1024 channels at 4x4 (``dcgan_64_paper``: generator 18,855,040 parameters);
* the common one, with 4x4 kernels and 512 channels at 4x4 (``dcgan_64``: generator 3,576,704, discriminator
  2,765,568).

Convolutions have no bias: batch norm would take it away, and both forms leave it out at the ends too.
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
class DCGANConfig:
    """What distinguishes one DCGAN from another.

    Attributes:
        resolution: height and width of the images; 4 times a power of two, 8 at least.
        channels: of the images.
        latent: length of z.
        width: channels of the layer next to the image; they double at every halving of the resolution.
        kernel_size: 4 or 5.
        negative_slope: of the discriminator's LeakyReLU; the paper's is 0.2.
    """

    resolution: int = 64
    channels: int = 3
    latent: int = 100
    width: int = 64
    kernel_size: int = 4
    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        stages = (self.resolution // 4).bit_length() - 1
        if self.resolution < 8 or self.resolution != 4 << stages:
            raise ValueError(f"DCGAN: resolution must be 8, 16, 32, ...; got {self.resolution}")
        if self.kernel_size not in (4, 5):
            raise ValueError(f"DCGAN: kernel_size must be 4 or 5, got {self.kernel_size}")

    @property
    def widths(self) -> list[int]:
        """Channels at each resolution from the one next to the image down to 4x4."""
        return [self.width << i for i in range((self.resolution // 4).bit_length() - 1)]


class Up(nn.Module):
    """x ``[N, C, H, W]`` -> ``[N, out, 2H, 2W]``, or 1x1 -> 4x4: transposed convolution, batch norm, ReLU."""

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, **conv: int) -> None:
        super().__init__()
        self.conv = layers.ConvTranspose2d(in_channels, out_channels, **conv, bias=False)
        self.norm = layers.BatchNorm2d(out_channels, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm_act(self.conv, self.norm, x)


class Down(nn.Module):
    """x ``[N, C, H, W]`` -> ``[N, out, H/2, W/2]``: strided convolution, batch norm, LeakyReLU."""

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, slope: float, **conv: int) -> None:
        super().__init__()
        self.conv = layers.Conv2d(in_channels, out_channels, **conv, bias=False)
        self.norm = layers.BatchNorm2d(out_channels, activation="leaky_relu", negative_slope=slope)

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm_act(self.conv, self.norm, x)


class Generator(nn.Module):
    """z ``[N, latent]`` -> images ``[N, channels, resolution, resolution]`` in [-1, 1]."""

    def __init__(self, config: DCGANConfig, layers: Layers) -> None:
        super().__init__()
        kernel = config.kernel_size
        double = {
            "kernel_size": kernel,
            "stride": 2,
            "padding": kernel // 2 - 1 + kernel % 2,
            "output_padding": kernel % 2,
        }
        widths = config.widths[::-1]
        # "Project and reshape" of a vector is a transposed convolution from 1x1 to 4x4.
        self.project = Up(layers, config.latent, widths[0], kernel_size=4)
        self.up = nn.ModuleList(Up(layers, wide, narrow, **double) for wide, narrow in pairwise(widths))
        self.to_image = layers.ConvTranspose2d(widths[-1], config.channels, **double, bias=False, activation="tanh")

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z[:, :, None, None])
        for stage in self.up:
            x = stage(x)
        return self.to_image(x)


class Discriminator(nn.Module):
    """Images ``[N, channels, resolution, resolution]`` -> logits ``[N]``: positive means "real"."""

    def __init__(self, config: DCGANConfig, layers: Layers) -> None:
        super().__init__()
        kernel, slope, widths = config.kernel_size, config.negative_slope, config.widths
        halve = {"kernel_size": kernel, "stride": 2, "padding": (kernel - 1) // 2}
        # No batch norm where the image comes in: samples would oscillate (section 3).
        self.from_image = layers.Conv2d(
            config.channels, widths[0], **halve, bias=False, activation="leaky_relu", negative_slope=slope
        )
        self.down = nn.ModuleList(Down(layers, narrow, wide, slope, **halve) for narrow, wide in pairwise(widths))
        self.to_logit = layers.Conv2d(widths[-1], 1, kernel_size=4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.from_image(x)
        for stage in self.down:
            x = stage(x)
        return self.to_logit(x).flatten()


@register_model(
    dcgan_32=DCGANConfig(resolution=32),
    dcgan_64=DCGANConfig(),
    dcgan_32_paper=DCGANConfig(resolution=32, width=128, kernel_size=5, negative_slope=0.2),
    dcgan_64_paper=DCGANConfig(width=128, kernel_size=5, negative_slope=0.2),
)
class DCGAN(nn.Module):
    """Both networks, as ``.generator`` and ``.discriminator``; called, it is the generator."""

    def __init__(self, config: DCGANConfig, layers: str | Layers = "gencore") -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config, get_layers(layers))
        self.discriminator = Discriminator(config, get_layers(layers))
        self.reset_parameters()

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def sample_latent(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``[count, latent]`` from U(-1, 1), on the model's device and in its dtype."""
        weight = next(self.parameters())
        return torch.empty(count, self.config.latent, dtype=weight.dtype, device=weight.device).uniform_(
            -1, 1, generator=generator
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights from N(0, 0.02^2) and batch norm's from N(1, 0.02^2), as the authors' code has them."""
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.normal_(1, 0.02)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0, 0.02)
