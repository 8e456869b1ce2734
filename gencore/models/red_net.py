"""RED-Net: image restoration by convolutions, transposed convolutions and symmetric skip connections.

Mao, Shen and Yang, "Image Restoration Using Very Deep Convolutional Encoder-Decoder Networks with Symmetric Skip
Connections", 2016, sections 3 and 4: 3x3 filters, 64 channels, a skip every two layers. For one / three image
channels: 296,641 / 298,947 parameters with 10 layers, 665,921 / 668,227 with 20, 1,035,201 / 1,037,507 with 30.
The released network of 30 layers has 128 channels: 4,134,785 / 4,139,395.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gencore.models.registry import register_model
from gencore.nn.layers import Layers, get_layers


@dataclass(frozen=True)
class REDNetConfig:
    """What distinguishes one RED-Net from another.

    Attributes:
        depth: layers in all, even, 4 at least; half of them are transposed convolutions.
        channels: of the images.
        width: channels inside.
        skips: False leaves the skip connections out, for comparison.
        residual: the network gives the corruption, and the image is added to it.
    """

    depth: int = 30
    channels: int = 1
    width: int = 64
    skips: bool = True
    residual: bool = True

    def __post_init__(self) -> None:
        if self.depth < 4 or self.depth % 2:
            raise ValueError(f"REDNet: depth must be an even number of at least 4, got {self.depth}")


@register_model(
    red_net_10=REDNetConfig(depth=10),
    red_net_20=REDNetConfig(depth=20),
    red_net_30=REDNetConfig(),
    red_net_30_wide=REDNetConfig(width=128),
)
class REDNet(nn.Module):
    """Corrupted images ``[N, channels, H, W]`` of any size -> restored ones."""

    def __init__(self, config: REDNetConfig, layers: str | Layers = "gencore") -> None:
        super().__init__()
        own, half, width = get_layers(layers), config.depth // 2, config.width
        same = {"kernel_size": 3, "padding": 1}
        self.config = config
        self.encoder = nn.ModuleList(
            own.Conv2d(width if i else config.channels, width, **same, activation="relu") for i in range(half)
        )
        self.decoder = nn.ModuleList(
            own.ConvTranspose2d(width, width, **same, activation="relu") for _ in range(half - 1)
        )
        self.to_image = own.ConvTranspose2d(width, config.channels, **same)
        self.reset_parameters()

    def forward(self, image: Tensor) -> Tensor:
        x, kept = image, {}
        for number, layer in enumerate(self.encoder, 1):
            x = layer(x)
            if self.config.skips and number % 2 == 0:
                kept[len(self.encoder) - number] = x  # c_i goes to d_(half - i)
        for number, layer in enumerate(self.decoder, 1):
            x = layer(x, residual=kept.get(number))  # added before the ReLU
        x = self.to_image(x)
        return image + x if self.config.residual else x

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights from N(0, 2 / fan_in), biases 0: He et al., "Delving Deep into Rectifiers", 2015, equation 10."""
        for layer in (*self.encoder, *self.decoder, self.to_image):
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            layer.weight.normal_(0, (2 / (9 * layer.in_channels)) ** 0.5)
            if layer.bias is not None:
                layer.bias.zero_()
