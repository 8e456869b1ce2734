"""The oracles: plain PyTorch, a page or less each, differentiable to any order. Read these first."""

from gencore.reference.batch_norm_act import batch_norm_act
from gencore.reference.bias_act import bias_act, bias_act_backward
from gencore.reference.conditional_batch_norm import conditional_batch_norm
from gencore.reference.conv import conv_epilogue, convolution, linear, transposed_convolution
from gencore.reference.instance_norm_act import instance_norm_act
from gencore.reference.modulated_conv2d import modulated_conv2d
from gencore.reference.norm_act_backward import norm_act_backward
from gencore.reference.pixel_norm import minibatch_stddev, minibatch_stddev_backward, pixel_norm, pixel_norm_backward
from gencore.reference.reparameterize_kl import reparameterize_kl, reparameterize_kl_backward
from gencore.reference.self_attention import attention_block, self_attention, self_attention_backward
from gencore.reference.spectral_norm import power_iteration, spectral_norm, spectral_norm_backward
from gencore.reference.upfirdn2d import conv2d_resample, setup_filter, upfirdn2d

__all__ = [
    "attention_block",
    "batch_norm_act",
    "bias_act",
    "bias_act_backward",
    "conditional_batch_norm",
    "conv2d_resample",
    "conv_epilogue",
    "convolution",
    "instance_norm_act",
    "linear",
    "minibatch_stddev",
    "minibatch_stddev_backward",
    "modulated_conv2d",
    "norm_act_backward",
    "pixel_norm",
    "pixel_norm_backward",
    "power_iteration",
    "reparameterize_kl",
    "reparameterize_kl_backward",
    "self_attention",
    "self_attention_backward",
    "setup_filter",
    "spectral_norm",
    "spectral_norm_backward",
    "transposed_convolution",
    "upfirdn2d",
]
