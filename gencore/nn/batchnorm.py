"""Batch normalisation layers: ``torch.nn``'s, with the activation and an optional residual fused in.

Arguments, defaults, ``state_dict`` and behaviour in training and evaluation are those of ``torch.nn.BatchNorm*``;
``activation=``, ``negative_slope=`` and ``impl=`` come on top, and ``forward`` takes a residual.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gencore.ops._activation import check_activation
from gencore.ops.batch_norm_act import with_moments


def running_statistics(layer: Any) -> dict[str, Any]:
    """The arguments of a batch norm that follow from a layer's mode and buffers; counts the batch in training."""
    factor = 0.0 if layer.momentum is None else layer.momentum
    if layer.training and layer.track_running_stats and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:  # the cumulative average
            factor = 1.0 / float(layer.num_batches_tracked)
    tracked = not layer.training or layer.track_running_stats
    return {
        "running_mean": layer.running_mean if tracked else None,
        "running_var": layer.running_var if tracked else None,
        "training": layer.training or layer.running_mean is None,
        "momentum": factor,
    }


class _BatchNormAct(torch.nn.modules.batchnorm._BatchNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        impl: str = "auto",
    ) -> None:
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        if not bias:  # which not every PyTorch knows
            options["bias"] = False
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **options)
        check_activation(type(self).__name__, activation or "identity")
        self.activation, self.negative_slope, self.impl = activation, negative_slope, impl

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """``activation(batch_norm(input) + residual)``, with shape, dtype and layout of ``input``."""
        return self._normalize(input, residual, None)

    def _normalize(self, input: Tensor, residual: Tensor | None, moments: tuple[Tensor, Tensor] | None) -> Tensor:
        """``moments``: mean and biased variance of the channels of ``input``, where they are known."""
        self._check_input_dim(input)
        return with_moments(
            input,
            moments,
            self.weight,
            self.bias,
            **running_statistics(self),
            eps=self.eps,
            activation=self.activation or "identity",
            negative_slope=self.negative_slope,
            residual=residual,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        if self.activation == "leaky_relu":
            text += f", negative_slope={self.negative_slope}"
        return text


class BatchNorm1d(_BatchNormAct, torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` for ``[N, C]`` or ``[N, C, L]``, with a fused activation.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as in ``torch.nn``;
            ``momentum=None`` takes the cumulative average.
        activation: None, ``"relu"``, ``"leaky_relu"``, ``"tanh"`` or ``"silu"``.
        negative_slope: of the leaky ReLU.
        impl: which implementation of :func:`gencore.functional.batch_norm_act` runs.
    """


class BatchNorm2d(_BatchNormAct, torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` for ``[N, C, H, W]``, with a fused activation; arguments of :class:`BatchNorm1d`."""


class BatchNorm3d(_BatchNormAct, torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` for ``[N, C, D, H, W]``, with a fused activation; arguments of :class:`BatchNorm1d`."""
