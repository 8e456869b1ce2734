"""The oracles: plain PyTorch, a page or less each, differentiable to any order. Read these first."""

from gencore.reference.reparameterize_kl import reparameterize_kl, reparameterize_kl_backward

__all__ = ["reparameterize_kl", "reparameterize_kl_backward"]
