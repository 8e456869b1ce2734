"""What :mod:`gencore.ops.spectral_norm` refuses."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor
from torch.nn import Parameter

from gencore.ops._checks import check_device, check_floating, check_shape, compute_dtype

_PLAIN = (Tensor, Parameter)


def validate(
    where: str, suffix: str, weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float, dim: int
) -> int:
    """Refuse what does not fit; ``dim``, not negative."""
    check_floating(where, "weight" + suffix, weight)
    rank = weight.dim()
    if rank == 0:
        raise RuntimeError(f"{where}: weight{suffix} must have at least 1 dimension, got a scalar")
    if not -rank <= dim < rank:
        raise IndexError(
            f"{where}: dim must be between {-rank} and {rank - 1} for a weight of {rank} dimensions, got {dim}"
        )
    check_settings(where, n_power_iterations, eps)
    if n_power_iterations < 0:
        raise ValueError(f"{where}: n_power_iterations must not be negative, got {n_power_iterations}")
    dim %= rank
    rows, columns = lengths(weight, dim)
    dtypes = (weight.dtype, compute_dtype(weight.dtype))
    for name, vector, length in ("u" + suffix, u, rows), ("v" + suffix, v, columns):
        check_floating(where, name, vector)
        check_device(where, name, vector, f"weight{suffix}", weight)
        check_shape(where, name, vector, (length,))
        if vector.dtype not in dtypes:
            raise RuntimeError(
                f"{where}: {name} must have the dtype of weight{suffix}, {dtypes[0]}, or {dtypes[1]}; "
                f"got {vector.dtype}"
            )
    return dim


def are_plain(weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor], dims: Sequence[int]) -> bool:
    """Whether all layers are float32 on the CPU and fit, at a glance: :func:`validate`, which says what does not, takes
    a network of small layers as long as the kernel."""
    for weight, u, v, dim in zip(weights, us, vs, dims, strict=True):
        if not (type(weight) in _PLAIN and type(u) is type(v) is Tensor and weight.is_cpu and u.is_cpu and v.is_cpu):
            return False
        if not (weight.dtype == u.dtype == v.dtype == torch.float32 and u.dim() == v.dim() == 1):
            return False
        rows = len(u)
        if not (0 <= dim < weight.dim() and rows == weight.size(dim) and rows * len(v) == weight.numel() > 0):
            return False
    return True


def check_settings(where: str, n_power_iterations: int, eps: float) -> None:
    if not eps > 0:
        raise ValueError(f"{where}: eps must be positive, got {eps}")
    if eps == inf:
        raise ValueError(f"{where}: eps must be finite, got {eps}")
    if not isinstance(n_power_iterations, int):
        raise TypeError(f"{where}: n_power_iterations must be a whole number, got {n_power_iterations}")


def lengths(weight: Tensor, dim: int) -> tuple[int, int]:
    """Of u and v."""
    rows = weight.shape[dim]
    return rows, weight.numel() // rows if rows else weight.shape[:dim].numel() * weight.shape[dim + 1 :].numel()
