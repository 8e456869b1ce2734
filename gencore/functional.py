"""The public ops. Each takes ``impl=`` and is differentiable; :func:`gencore.explain` says what runs and why."""

from gencore.ops.attention_block import attention_block
from gencore.ops.batch_norm_act import batch_norm_act
from gencore.ops.conv import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from gencore.ops.linear import linear
from gencore.ops.reparameterize_kl import reparameterize_kl
from gencore.ops.self_attention import self_attention
from gencore.ops.spectral_norm import spectral_norm, spectral_norm_list

__all__ = [
    "attention_block",
    "batch_norm_act",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "linear",
    "reparameterize_kl",
    "self_attention",
    "spectral_norm",
    "spectral_norm_list",
]
