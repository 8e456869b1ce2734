"""Convolution layers and ``Linear``: ``torch.nn``'s, with the activation fused in.

Arguments, defaults, initialisation, ``state_dict`` and repr are those of ``torch.nn``; ``activation=``,
``negative_slope=`` and ``impl=`` come on top, and ``forward`` of a convolution takes a residual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional
from torch import Tensor

import gencore.functional as F
from gencore.nn.utils.parametrizations import weight_and_scale
from gencore.ops._activation import CONV_ACTIVATIONS

LAYER_ACTIVATIONS = tuple(
    name for name in CONV_ACTIVATIONS if name != "prelu"
)  # whose slopes a layer would have to own


class _Fused(torch.nn.Module):
    """What the layers share: the arguments that come on top of ``torch.nn``'s."""

    takes_scale = True  # of spectral_norm_model

    def __init__(
        self, *args: Any, activation: str | None = None, negative_slope: float = 0.01, impl: str = "auto", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if activation not in (None, *LAYER_ACTIVATIONS):
            raise ValueError(
                f"{type(self).__name__}: activation must be None or one of {', '.join(LAYER_ACTIVATIONS)}; "
                f"got {activation!r}"
            )
        self.activation, self.negative_slope, self.impl = activation, negative_slope, impl

    def _weighted(self, epilogue: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The weight and the epilogue; in a forward in which ``spectral_norm_model`` folds, W and also 1 / sigma."""
        weight, scale = weight_and_scale(self)
        if scale is None:
            return weight, epilogue
        return weight, {**epilogue, "scale": scale * epilogue["scale"] if "scale" in epilogue else scale}

    def _epilogue(self) -> dict[str, Any]:
        return {
            "activation": self.activation or "identity",
            "negative_slope": self.negative_slope,
            "impl": self.impl,
        }

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        if self.activation == "leaky_relu":
            text += f", negative_slope={self.negative_slope}"
        return text


class _Conv(_Fused):
    dims: int
    bias: Tensor | None

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """``activation(conv(input) + bias + residual)``."""
        weight, epilogue = self._weighted(self._epilogue())
        return self._function(*self._arguments(input, weight, self.bias), residual=residual, **epilogue)

    @property
    def _function(self) -> Callable[..., Tensor]:
        return (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]

    def _arguments(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
        """The positional arguments of the function."""
        layer: Any = self
        padding = layer.padding
        if layer.padding_mode != "zeros":
            input = torch.nn.functional.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
            padding = 0
        return input, weight, bias, layer.stride, padding, layer.dilation, layer.groups


class Conv1d(_Conv, torch.nn.Conv1d):
    """``torch.nn.Conv1d`` for ``[N, C, L]``, with a fused activation; arguments of :class:`Conv2d`."""

    dims = 1


class Conv2d(_Conv, torch.nn.Conv2d):
    """``torch.nn.Conv2d`` for ``[N, C, H, W]``, with a fused activation.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            ``torch.nn``.
        activation: None, ``"relu"``, ``"leaky_relu"``, ``"tanh"``, ``"sigmoid"`` or ``"silu"``.
        negative_slope: of the leaky ReLU.
        impl: which implementation of :func:`gencore.functional.conv2d` runs.
    """

    dims = 2


class Conv3d(_Conv, torch.nn.Conv3d):
    """``torch.nn.Conv3d`` for ``[N, C, D, H, W]``, with a fused activation; arguments of :class:`Conv2d`."""

    dims = 3


class _ConvTranspose(_Fused):
    dims: int
    bias: Tensor | None

    def forward(
        self, input: Tensor, output_size: Sequence[int] | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """``activation(conv_transpose(input) + bias + residual)``, of ``output_size`` where that is given."""
        weight, epilogue = self._weighted(self._epilogue())
        return self._function(*self._arguments(input, weight, self.bias, output_size), residual=residual, **epilogue)

    @property
    def _function(self) -> Callable[..., Tensor]:
        return (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.dims - 1]

    def _arguments(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, output_size: Sequence[int] | None = None
    ) -> tuple[Any, ...]:
        """The positional arguments of the function."""
        layer: Any = self
        if layer.padding_mode != "zeros":
            raise ValueError(f"{type(self).__name__}: only padding_mode='zeros' is supported")
        output_padding = layer._output_padding(
            input, output_size, layer.stride, layer.padding, layer.kernel_size, self.dims, layer.dilation
        )
        geometry = (layer.stride, layer.padding, output_padding, layer.groups, layer.dilation)
        return input, weight, bias, *geometry


class ConvTranspose1d(_ConvTranspose, torch.nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d``, with a fused activation; what it adds is told at :class:`Conv2d`."""

    dims = 1


class ConvTranspose2d(_ConvTranspose, torch.nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d``, with a fused activation; what it adds is told at :class:`Conv2d`."""

    dims = 2


class ConvTranspose3d(_ConvTranspose, torch.nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d``, with a fused activation; what it adds is told at :class:`Conv2d`."""

    dims = 3


class Linear(_Fused, torch.nn.Linear):
    """``torch.nn.Linear`` with a fused activation; what it adds is told at :class:`Conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        """``activation(input weight^T + bias)``."""
        weight, epilogue = self._weighted(self._epilogue())
        return F.linear(input, weight, self.bias, **epilogue)
