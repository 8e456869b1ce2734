"""Oracle of ``bias_act``, and of the epilogue of a modulated convolution, which is a bias_act with two more terms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gencore.reference._precision import in_float32
from gencore.reference.activation import activate, activation_derivative


@in_float32
def bias_act(
    x: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    """clamp(gain act(x scale[n, c] + noise[n, pixel] + b[c])); ``act`` by its name in ``ops/_activation.py``.

    scale: [N, C]; noise: [N or 1, 1, pixels...]; b: [x.shape[dim]]. A negative ``clamp`` means none.
    """
    y = activate(_pre_activation(x, scale, noise, b, dim), act, alpha)
    y = y if gain == 1 else y * gain
    return y if clamp < 0 else y.clamp(-clamp, clamp)


def bias_act_backward(
    grad_y: Tensor,
    x: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, scale, noise and b, as a formula that can itself be differentiated."""
    u = _pre_activation(x, scale, noise, b, dim)
    g = grad_y * (activation_derivative(u, act, alpha) * gain)
    if clamp >= 0:
        g = g * ((activate(u, act, alpha) * gain).abs() <= clamp)
    pixels = list(range(2, x.dim()))
    grad_scale = None if scale is None else (g * x).sum(pixels) if pixels else g * x
    grad_noise = None if noise is None else _sum_to(g, noise.shape)
    grad_b = None if b is None else g.sum([d for d in range(x.dim()) if d != dim % x.dim()])
    return g if scale is None else g * _per_channel(scale, x), grad_scale, grad_noise, grad_b


def _pre_activation(x: Tensor, scale: Tensor | None, noise: Tensor | None, b: Tensor | None, dim: int) -> Tensor:
    x = x if scale is None else x * _per_channel(scale, x)
    x = x if noise is None else x + noise.to(x.dtype)
    return x if b is None else x + b.to(x.dtype).reshape([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])


def _per_channel(scale: Tensor, x: Tensor) -> Tensor:
    return scale.to(x.dtype).reshape(*scale.shape, *[1] * (x.dim() - 2))


def _sum_to(g: Tensor, shape: Sequence[int]) -> Tensor:
    dims = [d for d, size in enumerate(shape) if size == 1]
    return g.sum(dims, keepdim=True) if dims else g
