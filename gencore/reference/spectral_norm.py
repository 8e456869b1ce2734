"""Oracle of ``spectral_norm``."""

from __future__ import annotations

import torch
from torch import Tensor

from gencore.reference._precision import without_autocast


@without_autocast
def spectral_norm(
    weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float, dim: int, v_first: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W / sigma, sigma = u^T W v, and u and v after the power iterations, which count as constants."""
    sigma, u, v = power_iteration(weight, u, v, n_power_iterations, eps, dim, v_first)
    return (weight.to(u.dtype) / divisor(sigma, eps)).to(weight.dtype), sigma, u, v


@without_autocast
def power_iteration(
    weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float, dim: int, v_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """sigma, u and v."""
    matrix = as_matrix(weight.to(u.dtype), dim)
    fixed = matrix.detach()  # forward mode does not heed no_grad
    with torch.no_grad():
        for _ in range(n_power_iterations):
            for turn in "vu" if v_first else "uv":
                if turn == "u":
                    u = _unit(fixed @ v, u, eps)
                else:
                    v = _unit(fixed.T @ u, v, eps)
    return u @ (matrix @ v), u, v


@without_autocast
def spectral_norm_backward(
    weight: Tensor, u: Tensor, v: Tensor, grad: Tensor | None, grad_sigma: Tensor, eps: float, dim: int
) -> Tensor:
    """G / sigma + (g_sigma - <G, W> / sigma^2) u v^T, which is (G - <G, W_sn> u v^T) / sigma where g_sigma is 0."""
    if grad is None:
        result = grad_sigma * torch.outer(u, v)
    else:
        matrix = as_matrix(weight, dim).to(u.dtype)
        g = as_matrix(grad, dim).to(u.dtype)
        sigma = u @ (matrix @ v)
        by = divisor(sigma, eps)
        through_sigma = torch.where(sigma.abs() < eps, 0.0, (g * matrix).sum() / by.square())
        result = g / by + (grad_sigma - through_sigma) * torch.outer(u, v)
    moved = weight.movedim(dim, 0).shape
    return result.reshape(moved).movedim(0, dim).to(weight.dtype)


def as_matrix(weight: Tensor, dim: int) -> Tensor:
    """``weight`` as [size of ``dim``, everything else]."""
    moved = weight.movedim(dim, 0)
    return moved.flatten(1) if moved.dim() > 1 else moved.unsqueeze(1)


def _unit(vector: Tensor, before: Tensor, eps: float) -> Tensor:
    norm = vector.norm()
    return torch.where(norm < eps, before, vector / norm.clamp_min(eps))


def divisor(sigma: Tensor, eps: float) -> Tensor:
    """Sigma, or 1 where it is too small to divide by."""
    return torch.where(sigma.abs() < eps, 1.0, sigma)
