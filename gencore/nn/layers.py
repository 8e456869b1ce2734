"""Which layers a model is built from: gencore's, or their twins in plain ``torch.nn`` for comparison.

A model takes ``layers="gencore" | "torch"`` once and hands the table down. Both tables hold layers with the arguments
and the ``state_dict`` of ``torch.nn`` plus ``activation=`` and ``negative_slope=``, so the same network with the same
weights runs both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gencore.functional
from gencore.nn.batchnorm import BatchNorm2d, BatchNorm3d
from gencore.nn.conv import Conv2d, Conv3d, ConvTranspose2d, ConvTranspose3d, Linear
from gencore.nn.rescaled import ConvDownscale2d, UpscaleConv2d


@dataclass(frozen=True)
class Layers:
    """One class for each kind of layer, and the VAE's sampling function."""

    name: str
    Conv2d: Callable[..., nn.Module]
    UpscaleConv2d: Callable[..., nn.Module]
    ConvDownscale2d: Callable[..., nn.Module]
    Conv3d: Callable[..., nn.Module]
    ConvTranspose2d: Callable[..., nn.Module]
    ConvTranspose3d: Callable[..., nn.Module]
    Linear: Callable[..., nn.Module]
    BatchNorm2d: Callable[..., nn.Module]
    BatchNorm3d: Callable[..., nn.Module]
    reparameterize_kl: Callable[..., tuple[Tensor, Tensor]]

    @property
    def impl(self) -> str:
        """For ops that ``torch.nn`` has no layer of: the implementation in plain PyTorch, or the best there is."""
        return "reference" if self.name == "torch" else "auto"


def get_layers(name: str | Layers) -> Layers:
    """The table of that name; a table of one's own is passed through.

    Raises:
        ValueError: if the name is neither ``"gencore"`` nor ``"torch"``.
    """
    if isinstance(name, Layers):
        return name
    if name not in LAYERS:
        raise ValueError(f"layers must be one of {', '.join(LAYERS)}; got {name!r}")
    return LAYERS[name]


def _activate(x: Tensor, activation: str | None, negative_slope: float) -> Tensor:
    # In place, as most code has it: none of the layers here needs its own output for its gradient.
    match activation:
        case None:
            return x
        case "relu":
            return F.relu_(x)
        case "leaky_relu":
            return F.leaky_relu_(x, negative_slope)
        case "tanh":
            return torch.tanh_(x)
        case "sigmoid":
            return torch.sigmoid_(x)
        case _:
            raise ValueError(f"activation must be None, 'relu', 'leaky_relu', 'tanh' or 'sigmoid'; got {activation!r}")


class _ThenActivation(nn.Module):
    """Mixed into a layer of ``torch.nn``: the layer, an addition, the activation, each an op of its own."""

    def __init__(self, *args: Any, activation: str | None = None, negative_slope: float = 0.01, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation, self.negative_slope = activation, negative_slope

    def forward(self, *args: Any, residual: Tensor | None = None) -> Tensor:
        y = super().forward(*args)
        return _activate(y if residual is None else y + residual, self.activation, self.negative_slope)


class _TorchConv2d(_ThenActivation, nn.Conv2d): ...


class _TorchConvOfSameSize(nn.Conv2d):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, **options: Any) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, **options)


class _UpscaleConv2d(_TorchConvOfSameSize):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.interpolate(input, scale_factor=2.0, mode="nearest"))


class _ConvDownscale2d(_TorchConvOfSameSize):
    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(input), 2)


class _TorchUpscaleConv2d(_ThenActivation, _UpscaleConv2d): ...


class _TorchConvDownscale2d(_ThenActivation, _ConvDownscale2d): ...


class _TorchConv3d(_ThenActivation, nn.Conv3d): ...


class _TorchConvTranspose2d(_ThenActivation, nn.ConvTranspose2d): ...


class _TorchConvTranspose3d(_ThenActivation, nn.ConvTranspose3d): ...


class _TorchLinear(_ThenActivation, nn.Linear): ...


class _TorchBatchNorm2d(_ThenActivation, nn.BatchNorm2d): ...


class _TorchBatchNorm3d(_ThenActivation, nn.BatchNorm3d): ...


def _torch_reparameterize_kl(
    mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None, sample: bool = True
) -> tuple[Tensor, Tensor]:
    kl = 0.5 * (logvar.exp() + mu.square() - 1 - logvar).flatten(1).sum(1)
    if not sample:
        return mu, kl
    noise = torch.empty_like(mu).normal_(generator=generator)
    return mu + torch.exp(0.5 * logvar) * noise, kl


LAYERS = {
    "torch": Layers(
        name="torch",
        Conv2d=_TorchConv2d,
        UpscaleConv2d=_TorchUpscaleConv2d,
        ConvDownscale2d=_TorchConvDownscale2d,
        Conv3d=_TorchConv3d,
        ConvTranspose2d=_TorchConvTranspose2d,
        ConvTranspose3d=_TorchConvTranspose3d,
        Linear=_TorchLinear,
        BatchNorm2d=_TorchBatchNorm2d,
        BatchNorm3d=_TorchBatchNorm3d,
        reparameterize_kl=_torch_reparameterize_kl,
    ),
    "gencore": Layers(
        name="gencore",
        Conv2d=Conv2d,
        UpscaleConv2d=UpscaleConv2d,
        ConvDownscale2d=ConvDownscale2d,
        Conv3d=Conv3d,
        ConvTranspose2d=ConvTranspose2d,
        ConvTranspose3d=ConvTranspose3d,
        Linear=Linear,
        BatchNorm2d=BatchNorm2d,
        BatchNorm3d=BatchNorm3d,
        reparameterize_kl=gencore.functional.reparameterize_kl,
    ),
}
