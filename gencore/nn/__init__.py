"""Layers: drop-ins for ``torch.nn`` on gencore's ops, and the layers that ``torch.nn`` lacks."""

from gencore.nn.attention import SelfAttention2d
from gencore.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from gencore.nn.block import ConvNormAct
from gencore.nn.conditional import AdaIN, ConditionalBatchNorm2d
from gencore.nn.conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Linear,
)
from gencore.nn.instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from gencore.nn.noise import NoiseInjection
from gencore.nn.rescaled import (
    ConvDownscale2d,
    EqualizedConvDownscale2d,
    UpscaleConv2d,
    UpscaleEqualizedConv2d,
)
from gencore.nn.stylegan import (
    Blur,
    Downsample2d,
    EqualizedConv2d,
    FullyConnected,
    MinibatchStdDev,
    ModulatedConv2d,
    PixelNorm,
    Upsample2d,
)
from gencore.nn.syncbatchnorm import SyncBatchNorm, SyncConditionalBatchNorm2d

__all__ = [
    "AdaIN",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Blur",
    "ConditionalBatchNorm2d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvDownscale2d",
    "ConvNormAct",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Downsample2d",
    "EqualizedConv2d",
    "EqualizedConvDownscale2d",
    "FullyConnected",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "Linear",
    "MinibatchStdDev",
    "ModulatedConv2d",
    "NoiseInjection",
    "PixelNorm",
    "SelfAttention2d",
    "SyncBatchNorm",
    "SyncConditionalBatchNorm2d",
    "Upsample2d",
    "UpscaleConv2d",
    "UpscaleEqualizedConv2d",
]
