"""The public ops. Each takes ``impl=`` and is differentiable; :func:`gencore.explain` says what runs and why."""

from gencore.ops.attention_block import attention_block
from gencore.ops.batch_norm_act import batch_norm_act
from gencore.ops.bias_act import bias_act
from gencore.ops.conditional_batch_norm import conditional_batch_norm
from gencore.ops.conv import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from gencore.ops.conv_rescaled import conv2d_downscale2d, upscale2d_conv2d
from gencore.ops.instance_norm_act import instance_norm_act
from gencore.ops.linear import linear
from gencore.ops.minibatch_stddev import minibatch_stddev
from gencore.ops.modulated_conv2d import conv2d_resample, modulated_conv2d
from gencore.ops.pixel_norm import pixel_norm
from gencore.ops.reparameterize_kl import reparameterize_kl
from gencore.ops.self_attention import self_attention
from gencore.ops.setup_filter import setup_filter
from gencore.ops.spectral_norm import spectral_norm, spectral_norm_list
from gencore.ops.upfirdn2d import downsample2d, filter2d, upfirdn2d, upsample2d

__all__ = [
    "attention_block",
    "batch_norm_act",
    "bias_act",
    "conditional_batch_norm",
    "conv1d",
    "conv2d",
    "conv2d_downscale2d",
    "conv2d_resample",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "downsample2d",
    "filter2d",
    "instance_norm_act",
    "linear",
    "minibatch_stddev",
    "modulated_conv2d",
    "pixel_norm",
    "reparameterize_kl",
    "self_attention",
    "setup_filter",
    "spectral_norm",
    "spectral_norm_list",
    "upfirdn2d",
    "upsample2d",
    "upscale2d_conv2d",
]
