"""What SNGAN, SAGAN and BigGAN are put together from: layers with spectral norm, residual blocks, the discriminator.

The blocks are those of Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, as Miyato et al., "Spectral
Normalization for Generative Adversarial Networks", 2018, appendix B.4 have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencore.nn.attention import SelfAttention2d
from gencore.nn.conditional import ConditionalBatchNorm2d
from gencore.nn.layers import Layers
from gencore.nn.utils.parametrizations import spectral_norm, spectral_norm_model
from gencore.ops import _checks


@dataclass(frozen=True)
class Parts:
    """Makes the layers of one network: from one table, with or without spectral norm, with one initialisation.

    Attributes:
        layers: gencore's or PyTorch's.
        spectral_norm: divide every weight by its largest singular value.
        orthogonal: orthogonal weights (BigGAN) instead of Xavier's uniform ones (SNGAN); biases are 0 in both.
        eps: of the norms.
    """

    layers: Layers
    spectral_norm: bool
    orthogonal: bool
    eps: float = 1e-5

    def conv(self, inputs: int, outputs: int, kernel_size: int = 3, *, gain: float = 2**0.5, **options: Any) -> Any:
        """A convolution that keeps the size. ``gain``: of Xavier's initialisation."""
        layer = self.layers.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, **options)
        return self.finish(layer, gain)

    def conv_up(self, inputs: int, outputs: int) -> Any:
        """Pixels doubled, then a 3x3 convolution."""
        return self.finish(self.layers.UpscaleConv2d(inputs, outputs), 2**0.5)

    def conv_down(self, inputs: int, outputs: int) -> Any:
        """A 3x3 convolution, then the mean over 2x2 pixels."""
        return self.finish(self.layers.ConvDownscale2d(inputs, outputs), 2**0.5)

    def linear(self, inputs: int, outputs: int, *, bias: bool = True) -> Any:
        return self.finish(self.layers.Linear(inputs, outputs, bias=bias), 1.0)

    def embedding(self, classes: int, width: int) -> Any:
        return self.finish(nn.Embedding(classes, width), 1.0)

    def attention(self, channels: int) -> SelfAttention2d:
        layer = SelfAttention2d(channels, spectral_norm=False, impl=self.layers.impl)
        for projection in (layer.query, layer.key, layer.value, layer.out):
            self.finish(projection, 1.0)
        return layer

    def norm(self, channels: int, *, classes: int = 0, condition: int = 0) -> nn.Module:
        """Batch norm and ReLU; with the gain and bias of a class, or with those that a vector of this length gives."""
        if classes:
            gain, bias = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
            nn.init.ones_(gain.weight)
            nn.init.zeros_(bias.weight)
            return ConditionalBatchNorm2d(channels, gain, bias, eps=self.eps, activation="relu", impl=self.layers.impl)
        if condition:
            gain, bias = (self.linear(condition, channels, bias=False) for _ in range(2))
            return ConditionalBatchNorm2d(
                channels, gain, bias, gain_offset=1.0, eps=self.eps, activation="relu", impl=self.layers.impl
            )
        return self.layers.BatchNorm2d(channels, eps=self.eps, activation="relu")

    def finish(self, layer: Any, gain: float) -> Any:
        """Initialise the layer, then let spectral norm look for the singular vectors."""
        if self.orthogonal:
            nn.init.orthogonal_(layer.weight)
        else:
            nn.init.xavier_uniform_(layer.weight, gain)
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
        if not self.spectral_norm:
            return layer
        if self.layers.name == "torch":
            return torch.nn.utils.parametrizations.spectral_norm(layer)
        return spectral_norm(layer, impl=self.layers.impl)

    def batch(self, network: nn.Module) -> None:
        """Let all weights of a finished network be normalised in one call a forward, where gencore does it."""
        if self.spectral_norm and self.layers.name != "torch":
            spectral_norm_model(network)


class GeneratorBlock(nn.Module):
    """x ``[N, in, H, W]`` -> ``[N, out, 2H, 2W]``: twice norm, ReLU and 3x3 convolution, beside a 1x1 convolution."""

    def __init__(self, parts: Parts, inputs: int, outputs: int, **condition: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = parts.norm(inputs, **condition), parts.norm(outputs, **condition)
        self.conv1, self.conv2 = parts.conv_up(inputs, outputs), parts.conv(outputs, outputs)
        self.skip = parts.conv(inputs, outputs, 1, gain=1.0)

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x, *condition))
        # A 1x1 convolution gives the same before the pixels are doubled, for a quarter of the work.
        return self.conv2(self.norm2(h, *condition), residual=upsample(self.skip(x)))


class DiscriminatorBlock(nn.Module):
    """x ``[N, in, H, W]`` -> ``[N, out, H/2, W/2]`` (``down``) or ``[N, out, H, W]``: twice ReLU and 3x3 convolution,
    beside a 1x1 convolution where size or channels change. The ``first`` block takes the image without a ReLU."""

    def __init__(
        self, parts: Parts, inputs: int, outputs: int, hidden: int, *, down: bool, first: bool = False
    ) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1 = parts.conv(inputs, hidden, activation="relu")
        self.conv2 = parts.conv_down(hidden, outputs) if down else parts.conv(hidden, outputs)
        self.skip = parts.conv(inputs, outputs, 1, gain=1.0) if down or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x if self.first else F.relu(x))
        if self.down:
            assert self.skip is not None
            return self.conv2(h, residual=self.skip(F.avg_pool2d(x, 2)))
        return self.conv2(h, residual=x if self.skip is None else self.skip(x))


class ProjectionHead(nn.Module):
    """Features ``[N, C, H, W]`` -> logits ``[N]``: ReLU, sum over the image, a linear layer, and for classes the inner
    product with their embedding. Miyato and Koyama, "cGANs with Projection Discriminator", 2018, equation 3."""

    def __init__(self, parts: Parts, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = parts.linear(channels, 1)
        self.embedding = parts.embedding(classes, channels) if classes else None

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = F.relu(x).sum((2, 3))
        logits = self.linear(h).squeeze(1)
        check_condition(y, self.embedding is not None, len(x))
        if self.embedding is None or y is None:
            return logits
        _checks.check_classes("discriminator", "y", y, self.embedding.num_embeddings)
        return logits + (self.embedding(y) * h).sum(1)


class ResidualDiscriminator(nn.Module):
    """Images ``[N, channels, R, R]``, and their classes ``[N]`` if there are any -> logits ``[N]``.

    Args:
        parts: what to build from.
        channels: of the images.
        widths: channels after each block; the first ``halvings`` of the blocks halve the resolution.
        halvings: number of these.
        classes: number of classes, 0 for none.
        wide: the first convolution of a block makes as many channels as the block gives, not as it gets.
        attention: self-attention after this many blocks; 0 for none.
    """

    def __init__(
        self,
        parts: Parts,
        channels: int,
        widths: Sequence[int],
        halvings: int,
        *,
        classes: int,
        wide: bool,
        attention: int,
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        inputs = channels
        for i, outputs in enumerate(widths):
            hidden = outputs if wide or i == 0 else inputs
            stages.append(DiscriminatorBlock(parts, inputs, outputs, hidden, down=i < halvings, first=i == 0))
            if i + 1 == attention:
                stages.append(parts.attention(outputs))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = ProjectionHead(parts, inputs, classes)
        parts.batch(self)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.head(self.stages(x), y)


def upsample(x: Tensor) -> Tensor:
    """Every pixel four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def check_attention(where: str, name: str, resolution: int, there_are: Sequence[int]) -> None:
    """Raises a ValueError where self-attention is asked for (not 0) at a resolution that does not occur."""
    if resolution and resolution not in there_are:
        raise ValueError(f"{where}: {name} must be 0 or one of {', '.join(map(str, there_are))}; got {resolution}")


def check_latent(z: Tensor, length: int) -> None:
    """Raises a RuntimeError where z is not ``[N, length]``."""
    if z.dim() != 2 or z.shape[1] != length:
        raise RuntimeError(f"generator: z must have shape [N, {length}], got {tuple(z.shape)}")


def check_condition(y: Tensor | None, wanted: bool, samples: int, embedded: int = 0) -> None:
    """Raises a ValueError where classes are missing, or given to a network that knows none, and a RuntimeError where
    they are not ``[samples]`` (or embeddings of this length). Which classes there are is for the embedding to check."""
    if wanted and y is None:
        raise ValueError("this network is conditional: it needs the classes y [N]")
    if y is not None and not wanted:
        raise ValueError("this network has no classes: y must be None")
    if y is not None:
        is_embedding = embedded > 0 and y.is_floating_point()
        _checks.check_shape("classes", "y", y, (samples, embedded) if is_embedding else (samples,))


def sample_classes(model: nn.Module, count: int, classes: int, generator: torch.Generator | None) -> Tensor:
    """``[count]`` classes, each equally likely, on the model's device."""
    device = next(model.parameters()).device
    return torch.randint(classes, (count,), device=device, generator=generator)
