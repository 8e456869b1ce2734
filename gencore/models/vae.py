"""Variational autoencoders with Bernoulli pixels, convolutional and fully connected.

Kingma and Welling, "Auto-Encoding Variational Bayes", 2014. The convolutional layout is that of Burgess et al.,
"Understanding disentangling in beta-VAE", 2018, appendix A: 469,173 parameters for 1x32x32, 502,005 for 1x64x64,
504,055 for 3x64x64. The fully connected one, 784-400-20, has 652,824.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from gencore.models.registry import register_model
from gencore.nn.layers import Layers, get_layers


class VAE(nn.Module):
    """Images in [0, 1] -> latent Gaussian -> one Bernoulli logit a pixel.

    ``encoder`` and ``decoder`` map between images ``[N, C, H, W]`` and vectors, ``2 * latent`` long on the way in
    (mu, then logvar) and ``latent`` long on the way out.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent: int, layers: Layers) -> None:
        super().__init__()
        self.encoder, self.decoder, self.latent = encoder, decoder, latent
        self._reparameterize_kl = layers.reparameterize_kl

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Logits, shape of ``x``, and the divergence from the prior, ``[N]`` in nats.

        In training mode z is drawn (from ``generator``), in evaluation mode it is the mean.
        """
        mu, logvar = self.encode(x)
        z, kl = self._reparameterize_kl(mu, logvar, generator=generator, sample=self.training)
        return self.decoder(z), kl

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), ``[N, latent]`` each."""
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Mean images of p(x | z), ``[N, C, H, W]`` in [0, 1], for z ``[N, latent]``."""
        return torch.sigmoid(self.decoder(z))

    def sample_latent(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``[count, latent]`` from N(0, I), on the model's device and in its dtype."""
        weight = next(self.parameters())
        return torch.randn(count, self.latent, dtype=weight.dtype, device=weight.device, generator=generator)


@dataclass(frozen=True)
class ConvVAEConfig:
    """A convolutional VAE: ``resolution`` 32 or 64 (4 times a power of two), ``channels`` of the images, ``latent``
    dimensions, ``width`` of the convolutions and ``hidden`` units of the two layers around the latent code."""

    resolution: int = 32
    channels: int = 1
    latent: int = 10
    width: int = 32
    hidden: int = 256

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution != 4 << self.stages:
            raise ValueError(f"ConvVAE: resolution must be 8, 16, 32, ...; got {self.resolution}")

    @property
    def stages(self) -> int:
        """How often the resolution is halved on the way to 4x4."""
        return (self.resolution // 4).bit_length() - 1


@register_model(
    vae_32=ConvVAEConfig(),
    vae_32_latent2=ConvVAEConfig(latent=2),
    vae_64=ConvVAEConfig(resolution=64, channels=3),
)
class ConvVAE(VAE):
    """Strided 4x4 convolutions down to 4x4, two linear layers, the latent code, and the mirror image of it all."""

    def __init__(self, config: ConvVAEConfig, layers: str | Layers = "gencore") -> None:
        own = get_layers(layers)
        width, hidden, flat = config.width, config.hidden, config.width * 16
        halve = {"kernel_size": 4, "stride": 2, "padding": 1}
        widths = [config.channels] + [width] * config.stages
        encoder = nn.Sequential(
            *(own.Conv2d(a, b, **halve, activation="relu") for a, b in pairwise(widths)),
            nn.Flatten(),  # [N, 16 * width]
            own.Linear(flat, hidden, activation="relu"),
            own.Linear(hidden, hidden, activation="relu"),
            own.Linear(hidden, 2 * config.latent),
        )
        decoder = nn.Sequential(
            own.Linear(config.latent, hidden, activation="relu"),
            own.Linear(hidden, hidden, activation="relu"),
            own.Linear(hidden, flat, activation="relu"),
            nn.Unflatten(1, (width, 4, 4)),
            *(own.ConvTranspose2d(width, width, **halve, activation="relu") for _ in range(config.stages - 1)),
            own.ConvTranspose2d(width, config.channels, **halve),
        )
        super().__init__(encoder, decoder, config.latent, own)
        self.config = config
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights from N(0, 2 / fan_in), biases 0: He et al., "Delving Deep into Rectifiers", 2015, equation 10.

        PyTorch's default would divide the variance of the signal by 6 at each of these rectified layers, and the
        latent code would stay unused for long.
        """
        for module in self.modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if weight is None or bias is None:
                continue
            # Of the taps of a transposed convolution with stride 2, each output pixel meets a quarter.
            transposed = getattr(module, "transposed", False)
            fan_in = weight[:, 0].numel() / 4 if transposed else weight[0].numel()
            weight.normal_(0, (2 / fan_in) ** 0.5)
            bias.zero_()


@dataclass(frozen=True)
class MLPVAEConfig:
    """A fully connected VAE: ``resolution`` and ``channels`` of the images, one ``hidden`` layer on either side."""

    resolution: int = 28
    channels: int = 1
    latent: int = 20
    hidden: int = 400


@register_model(vae_mlp=MLPVAEConfig())
class MLPVAE(VAE):
    """pixels - hidden ReLU - (mu, logvar) - hidden ReLU - pixels."""

    def __init__(self, config: MLPVAEConfig, layers: str | Layers = "gencore") -> None:
        own = get_layers(layers)
        shape = (config.channels, config.resolution, config.resolution)
        pixels = config.channels * config.resolution**2
        encoder = nn.Sequential(
            nn.Flatten(),
            own.Linear(pixels, config.hidden, activation="relu"),
            own.Linear(config.hidden, 2 * config.latent),
        )
        decoder = nn.Sequential(
            own.Linear(config.latent, config.hidden, activation="relu"),
            own.Linear(config.hidden, pixels),
            nn.Unflatten(1, shape),
        )
        super().__init__(encoder, decoder, config.latent, own)
        self.config = config
