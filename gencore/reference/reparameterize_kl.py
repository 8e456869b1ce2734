"""Oracle of ``reparameterize_kl``."""

from __future__ import annotations

import torch
from torch import Tensor

from gencore.reference.philox import philox_normal


def reparameterize_kl(mu: Tensor, logvar: Tensor, seed: Tensor, sample: bool = True) -> tuple[Tensor, Tensor]:
    """z = mu + exp(logvar / 2) * eps and kl = 1/2 sum(exp(logvar) - 1 - logvar + mu^2), float32 inside."""
    compute = torch.float64 if mu.dtype == torch.float64 else torch.float32
    m, lv = mu.to(compute), logvar.to(compute)
    kl = 0.5 * (lv.expm1() - lv + m.square()).flatten(1).sum(1)
    if not sample:
        return mu.clone(), kl
    rows = mu.shape[0]
    eps = philox_normal(seed, rows, mu.numel() // max(rows, 1)).to(compute).view(mu.shape)
    return torch.empty_like(mu).copy_(m + (0.5 * lv).exp() * eps), kl


def reparameterize_kl_backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, sample: bool = True
) -> tuple[Tensor, Tensor]:
    """d mu = dz + dkl mu;  d logvar = 1/2 (dz eps exp(logvar / 2) + dkl (exp(logvar) - 1))."""
    compute = torch.float64 if mu.dtype == torch.float64 else torch.float32
    gz, m, lv = grad_z.to(compute), mu.to(compute), logvar.to(compute)
    gk = grad_kl.view(-1, *[1] * (mu.dim() - 1))
    grad_logvar = 0.5 * gk * lv.expm1()
    if sample:
        rows = mu.shape[0]
        eps = philox_normal(seed, rows, mu.numel() // max(rows, 1)).to(compute).view(mu.shape)
        grad_logvar = grad_logvar + 0.5 * gz * eps * (0.5 * lv).exp()
    return (gz + gk * m).to(mu.dtype), grad_logvar.to(mu.dtype)
