"""RED-CNN: low-dose CT slices to normal-dose ones.

Chen et al., "Low-Dose CT With a Residual Encoder-Decoder Convolutional Neural Network", 2017, section II and figure 1:
1,848,865 parameters. Nothing is padded: five 5x5 convolutions take 20 pixels off each dimension and five transposed
ones bring them back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gencore.models.registry import register_model
from gencore.nn.layers import Layers, get_layers


@dataclass(frozen=True)
class REDCNNConfig:
    """``channels`` of the slices, ``width`` of the layers inside, ``kernel_size`` of all filters."""

    channels: int = 1
    width: int = 96
    kernel_size: int = 5


@register_model(red_cnn=REDCNNConfig())
class REDCNN(nn.Module):
    """Slices ``[N, channels, H, W]`` in [0, 1], 21 pixels or more in each dimension -> denoised ones, not negative."""

    def __init__(self, config: REDCNNConfig, layers: str | Layers = "gencore") -> None:
        super().__init__()
        own, width, kernel = get_layers(layers), config.width, config.kernel_size
        self.config = config
        self.encoder = nn.ModuleList(
            own.Conv2d(width if i else config.channels, width, kernel, activation="relu") for i in range(5)
        )
        self.decoder = nn.ModuleList(
            own.ConvTranspose2d(width, width if i < 4 else config.channels, kernel, activation="relu") for i in range(5)
        )
        self.reset_parameters()

    def forward(self, image: Tensor) -> Tensor:
        x, kept = image, [image]
        for layer in self.encoder:
            x = layer(x)
            kept.append(x)
        # The fourth convolution's result, the second's and the image itself are added before the ReLU.
        for layer, residual in zip(self.decoder, (kept[4], None, kept[2], None, kept[0]), strict=True):
            x = layer(x, residual=residual)
        return x

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights from N(0, 0.01^2), biases 0, as in the paper."""
        for layer in (*self.encoder, *self.decoder):
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            layer.weight.normal_(0, 0.01)
            if layer.bias is not None:
                layer.bias.zero_()
