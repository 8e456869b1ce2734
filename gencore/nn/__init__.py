"""Layers: drop-ins for ``torch.nn`` on gencore's ops."""

from gencore.nn.attention import SelfAttention2d
from gencore.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from gencore.nn.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Linear

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Linear",
    "SelfAttention2d",
]
