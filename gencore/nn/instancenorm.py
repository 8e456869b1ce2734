"""Instance normalisation layers: ``torch.nn``'s, with the activation and an optional residual fused in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import gencore.functional as F
from gencore.ops._activation import check_activation
from gencore.ops._checks import compute_dtype


class _InstanceNormAct(torch.nn.modules.instancenorm._InstanceNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
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
        """``activation(instance_norm(input) + residual)``, with shape, dtype and layout of ``input``."""
        layer: Any = self
        layer._check_input_dim(input)
        channels = input.dim() - layer._get_no_batch_dim()
        if input.shape[channels] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: expected {self.num_features} channels (num_features), got {tuple(input.shape)}"
            )
        if channels == 0:  # one sample, without the batch's dimension
            return self(input[None], None if residual is None else residual[None])[0]
        epilogue: dict[str, Any] = {
            "eps": self.eps,
            "activation": self.activation or "identity",
            "negative_slope": self.negative_slope,
            "residual": residual,
            "impl": self.impl,
        }
        if self.track_running_stats and not self.training:
            assert self.running_mean is not None
            assert self.running_var is not None
            # In a precision of their own, as PyTorch's instance norm takes them and its batch norm does not.
            compute = compute_dtype(input.dtype)
            mean, var = self.running_mean.to(compute), self.running_var.to(compute)
            return F.batch_norm_act(input, self.weight, self.bias, mean, var, training=False, **epilogue)
        if self.track_running_stats:
            self._track(input.detach())
        return F.instance_norm_act(input, self.weight, self.bias, **epilogue)

    def _track(self, x: Tensor) -> None:
        """Moves the running statistics to the means, over the batch, of the images' means and unbiased variances."""
        assert self.running_mean is not None
        assert self.running_var is not None
        # PyTorch knows no cumulative average here: momentum=None leaves the statistics alone.
        factor = 0.0 if self.momentum is None else self.momentum
        var, mean = torch.var_mean(x.to(self.running_mean.dtype).flatten(2), dim=2)
        self.running_mean.lerp_(mean.mean(0), factor)
        self.running_var.lerp_(var.mean(0), factor)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        if self.activation == "leaky_relu":
            text += f", negative_slope={self.negative_slope}"
        return text


class InstanceNorm1d(_InstanceNormAct, torch.nn.InstanceNorm1d):
    """``torch.nn.InstanceNorm1d`` for ``[N, C, L]`` or ``[C, L]``, with a fused activation.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as in ``torch.nn``.
        activation: None, ``"relu"``, ``"leaky_relu"``, ``"tanh"`` or ``"silu"``.
        negative_slope: of the leaky ReLU.
        impl: which implementation of :func:`gencore.functional.instance_norm_act` runs.
    """


class InstanceNorm2d(_InstanceNormAct, torch.nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` for ``[N, C, H, W]``, with a fused activation; arguments of
    :class:`InstanceNorm1d`."""


class InstanceNorm3d(_InstanceNormAct, torch.nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d`` for ``[N, C, D, H, W]``, with a fused activation; arguments of
    :class:`InstanceNorm1d`."""
