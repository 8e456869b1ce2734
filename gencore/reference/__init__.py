"""The oracles: plain PyTorch, a page or less each, differentiable to any order. Read these first."""

from gencore.reference.batch_norm_act import batch_norm_act, batch_norm_act_backward
from gencore.reference.conv import convolution, linear, transposed_convolution
from gencore.reference.reparameterize_kl import reparameterize_kl, reparameterize_kl_backward
from gencore.reference.self_attention import attention_block, self_attention, self_attention_backward
from gencore.reference.spectral_norm import spectral_norm, spectral_norm_backward

__all__ = [
    "attention_block",
    "batch_norm_act",
    "batch_norm_act_backward",
    "convolution",
    "linear",
    "reparameterize_kl",
    "reparameterize_kl_backward",
    "self_attention",
    "self_attention_backward",
    "spectral_norm",
    "spectral_norm_backward",
    "transposed_convolution",
]
