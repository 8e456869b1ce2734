"""What StyleGAN and StyleGAN2 share: the mapping network, truncation, style mixing, and noise.

Karras, Laine and Aila, "A Style-Based Generator Architecture for Generative Adversarial Networks", 2019. Each synthesis
layer takes a style of its own, two layers at each resolution, so styles are ``[N, layers, style]`` everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import gencore.functional as F
from gencore.models.resolutions import resolutions
from gencore.nn import FullyConnected
from gencore.nn.noise import standard_normal

# Section 3.1 and figure 5: which resolutions' styles to copy for a pose, for a face, for colours.
STYLE_GROUPS = {"coarse": (4, 8), "middle": (16, 32), "fine": (64, 1024)}

# Figure 5 of the published paper: where noise enters.
NOISE_SETTINGS = ("all", "none", "fine", "coarse")


class MappingNetwork(nn.Module):
    """z ``[N, latent]`` -> styles ``[N, layers, style]``: eight fully connected layers that learn 100 times slower.

    While training, ``w_avg`` follows the mean style; truncation pulls styles towards it.
    """

    w_avg: Tensor

    def __init__(self, latent: int, style: int, depth: int, layers: int, *, impl: str = "auto", **linear: Any) -> None:
        super().__init__()
        self.count = layers
        self.layers = nn.ModuleList(
            FullyConnected(style if i else latent, style, activation="lrelu", lr_multiplier=0.01, impl=impl, **linear)
            for i in range(depth)
        )
        self.impl = impl
        self.register_buffer("w_avg", torch.zeros(style))

    def forward(self, z: Tensor, *, truncation: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Styles, those of the first ``cutoff`` layers (all if None) truncated.

        Args:
            truncation: psi: 1 for w itself, 0 for the average style.
        """
        w = F.pixel_norm(z, impl=self.impl)
        for layer in self.layers:
            w = layer(w)
        if self.training and len(w) > 0:
            self.w_avg.copy_(torch.lerp(w.detach().to(self.w_avg.dtype).mean(0), self.w_avg, 0.995))
        return truncate(w[:, None].expand(-1, self.count, -1), self.w_avg, truncation, cutoff)


def truncate(styles: Tensor, average: Tensor, truncation: float, cutoff: int | None = None) -> Tensor:
    """``average + truncation * (styles - average)`` in the first ``cutoff`` layers (all if None). Appendix B."""
    if not math.isfinite(truncation):
        raise ValueError(f"truncation must be a finite number, got {truncation}")
    if truncation == 1:
        return styles
    psi = torch.ones(styles.shape[1], 1, dtype=styles.dtype, device=styles.device)
    psi[:cutoff] = truncation
    return torch.lerp(average.to(styles.dtype), styles, psi)


def style_layers(group: str | tuple[int, int], *, skips: bool = False) -> slice:
    """The layers from one resolution to another, both included; or those of a group in :data:`STYLE_GROUPS`.

    Args:
        skips: of a StyleGAN2, which has one convolution at 4x4 and two at each further resolution, and where the layer
            that makes a resolution's picture shares its style with the next resolution's first convolution.

    Raises:
        ValueError: if there is no such group, or the resolutions are no powers of two in rising order.
    """
    if isinstance(group, str):
        if group not in STYLE_GROUPS:
            raise ValueError(f"a style group must be one of {', '.join(STYLE_GROUPS)}; got {group!r}")
        group = STYLE_GROUPS[group]
    low, high = group
    if not {low, high} <= set(resolutions(1024)) or low > high:
        raise ValueError(f"a style group must go from one power of two in 4..1024 up to another, got {group}")
    first, end = 2 * (low.bit_length() - 3), 2 * (high.bit_length() - 2)
    return slice(max(first - 1, 0), end - 1) if skips else slice(first, end)


def mix_styles(a: Tensor, b: Tensor, group: str | tuple[int, int], *, skips: bool = False) -> Tensor:
    """``a`` with the styles of one group of layers copied from ``b``; both ``[N, layers, style]``.

    Args:
        group: ``"coarse"`` (4 to 8), ``"middle"`` (16 to 32), ``"fine"`` (64 on), or resolutions ``(from, to)``.
        skips: the styles are a StyleGAN2's, as for :func:`style_layers`.

    Raises:
        ValueError: if the shapes differ, there is no such group, or none of its layers are among the styles'.
    """
    if a.shape != b.shape:
        raise ValueError(f"mix_styles: both styles must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    of_two = style_layers(group)  # two layers at each resolution
    if of_two.start >= a.shape[1]:
        raise ValueError(
            f"mix_styles: the group {group!r} begins at layer {of_two.start} of {a.shape[1]}: nothing would be mixed"
        )
    layers = style_layers(group, skips=skips)
    if of_two.stop >= a.shape[1]:  # with the last picture, whose style no other layer shares
        layers = slice(layers.start, None)
    mixed = a.clone()
    mixed[:, layers] = b[:, layers]
    return mixed


def check_styles(styles: Tensor, layers: int) -> None:
    """Raises a RuntimeError where there is not one style a layer."""
    if styles.dim() != 3 or styles.shape[1] != layers:
        raise RuntimeError(f"synthesis: styles must have shape [N, {layers}, style], got {tuple(styles.shape)}")


@dataclass(frozen=True)
class Noise:
    """The noise of a synthesis network.

    Attributes:
        kind: ``"random"``, drawn anew; ``"const"``, the same in every image; or ``"none"``.
        low, high: resolutions from which and to which noise enters.
        generator: where random noise comes from.
    """

    kind: str = "random"
    low: int = 4
    high: int = 1024
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("random", "const", "none"):
            raise ValueError(f"noise must be 'random', 'const' or 'none'; got {self.kind!r}")
        if self.low > self.high:
            raise ValueError(f"noise must enter from a resolution on up to another, got {self.low} to {self.high}")

    @classmethod
    def of(cls, noise: Noise | str) -> Noise:
        return noise if isinstance(noise, Noise) else cls(noise)

    @classmethod
    def ablation(cls, setting: str, *, boundary: int = 64, kind: str = "random") -> Noise:
        """Noise in all layers, in none, in the fine ones (from ``boundary``), or in the coarse ones (below it).

        Raises:
            ValueError: if the setting is none of :data:`NOISE_SETTINGS`.
        """
        if setting not in NOISE_SETTINGS:
            raise ValueError(f"noise setting must be one of {', '.join(NOISE_SETTINGS)}; got {setting!r}")
        low, high = boundary if setting == "fine" else 4, boundary // 2 if setting == "coarse" else 1024
        return cls("none") if setting == "none" or low > high else cls(kind, low=low, high=high)

    def draw(self, count: int, constant: Tensor) -> Tensor | None:
        """``[count, 1, H, W]`` or ``[1, 1, H, W]``, or None, for a layer with this constant noise ``[H, W]``."""
        if self.kind == "none" or not self.low <= constant.shape[-1] <= self.high:
            return None
        if self.kind == "const":
            return constant[None, None]
        return standard_normal((count, 1, *constant.shape), constant, self.generator)


class StyleGenerator(nn.Module):
    """z ``[N, latent]`` -> images, about in [-1, 1]: a mapping network, and a synthesis network for its styles."""

    def __init__(self, mapping: MappingNetwork, synthesis: nn.Module) -> None:
        super().__init__()
        self.mapping = mapping
        self.synthesis: Any = synthesis

    def forward(
        self, z: Tensor, *, truncation: float = 1.0, cutoff: int | None = None, noise: Noise | str = "random"
    ) -> Tensor:
        """``truncation`` and ``cutoff`` as in :class:`MappingNetwork`; noise as in :class:`Noise`, or its kind."""
        return self.synthesis(self.mapping(z, truncation=truncation, cutoff=cutoff), noise)
