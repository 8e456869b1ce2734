"""The oracles: plain PyTorch, a page or less each, differentiable to any order. Read these first."""

from gencore.reference.batch_norm_act import batch_norm_act, batch_norm_act_backward
from gencore.reference.conv import convolution, linear, transposed_convolution
from gencore.reference.reparameterize_kl import reparameterize_kl, reparameterize_kl_backward

__all__ = [
    "batch_norm_act",
    "batch_norm_act_backward",
    "convolution",
    "linear",
    "reparameterize_kl",
    "reparameterize_kl_backward",
    "transposed_convolution",
]
