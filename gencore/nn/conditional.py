"""Normalisation whose scale and bias depend on something else: a class, a part of z, a style."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import gencore.functional as F
from gencore.nn.batchnorm import running_statistics
from gencore.nn.conv import Linear
from gencore.ops._activation import check_activation
from gencore.ops._checks import check_classes


class ConditionalBatchNorm2d(torch.nn.modules.batchnorm._NormBase):
    """Batch norm of ``[N, C, H, W]`` with the gain and bias that two layers make of a condition.

    SNGAN's condition is a class and the layers are embeddings (``gain_offset=0``, the gain's rows beginning at 1);
    BigGAN's is a vector and they are linear (``gain_offset=1``).

    Args:
        num_features: C.
        gain, bias: layers from the condition to ``[N, C]``.
        gain_offset: added to the gain.
        eps, momentum, track_running_stats: as in ``torch.nn.BatchNorm2d``.
        activation: None, ``"relu"``, ``"leaky_relu"``, ``"tanh"`` or ``"silu"``.
        negative_slope: of the leaky ReLU.
        impl: which implementation of :func:`gencore.functional.conditional_batch_norm` runs.

    Raises:
        IndexError: a class that the embedding of gains does not have.
        ValueError, RuntimeError: as :func:`gencore.functional.conditional_batch_norm`.
    """

    bias: Any  # a layer, where the base class has a parameter

    def __init__(
        self,
        num_features: int,
        gain: nn.Module,
        bias: nn.Module,
        *,
        gain_offset: float = 0.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        impl: str = "auto",
    ) -> None:
        super().__init__(num_features, eps, momentum, False, track_running_stats)
        check_activation(type(self).__name__, activation or "identity")
        # The base class has registered both names as absent parameters.
        del self.weight, self.bias
        self.gain, self.bias = gain, bias
        self.gain_offset = gain_offset
        self.activation, self.negative_slope, self.impl = activation, negative_slope, impl

    def reset_parameters(self) -> None:
        """The running statistics alone: the layers of gain and bias have initialisations of their own."""
        self.reset_running_stats()

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """``activation((gain_offset + gain(condition)) * batch_norm(input) + bias(condition))``."""
        gain, bias = self.affine_of(condition)
        return F.conditional_batch_norm(
            input,
            gain,
            bias,
            **running_statistics(self),
            eps=self.eps,
            activation=self.activation or "identity",
            negative_slope=self.negative_slope,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, gain_offset={self.gain_offset}, eps={self.eps}, momentum={self.momentum}, "
            f"track_running_stats={self.track_running_stats}{_activation(self)}"
        )

    def affine_of(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and bias, ``[N, C]`` each."""
        if isinstance(self.gain, nn.Embedding):
            check_classes(type(self).__name__, "condition", condition, self.gain.num_embeddings)
        gain = self.gain(condition)
        return gain + self.gain_offset if self.gain_offset else gain, self.bias(condition)


class AdaIN(nn.Module):
    """Adaptive instance norm: a linear layer turns a style ``[N, style_features]`` into a scale and a bias a channel.

    ``(1 + scale) * instance_norm(x) + bias``, then the activation. Karras, Laine and Aila, "A Style-Based Generator
    Architecture for Generative Adversarial Networks", 2019, equation 1.

    Args:
        num_features: channels of the images.
        style_features: length of the style.
        eps: added to the variance.
        activation: None, ``"relu"``, ``"leaky_relu"``, ``"tanh"`` or ``"silu"``.
        negative_slope: of the leaky ReLU.
        impl: which implementation of :func:`gencore.functional.instance_norm_act` runs.
    """

    def __init__(
        self,
        num_features: int,
        style_features: int,
        *,
        eps: float = 1e-5,
        activation: str | None = None,
        negative_slope: float = 0.01,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_activation(type(self).__name__, activation or "identity")
        self.style = Linear(style_features, 2 * num_features)
        self.eps, self.activation, self.negative_slope, self.impl = eps, activation, negative_slope, impl

    def forward(self, input: Tensor, style: Tensor) -> Tensor:
        scale, bias = self.style(style).chunk(2, dim=1)
        options: dict[str, Any] = {"activation": self.activation or "identity", "negative_slope": self.negative_slope}
        return F.instance_norm_act(input, scale + 1, bias, eps=self.eps, impl=self.impl, **options)

    def extra_repr(self) -> str:
        return f"eps={self.eps}{_activation(self)}"


def _activation(layer: Any) -> str:
    """As the other layers show it."""
    text = "" if layer.activation is None else f", activation={layer.activation!r}"
    return text + (f", negative_slope={layer.negative_slope}" if layer.activation == "leaky_relu" else "")
