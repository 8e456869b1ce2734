"""The layers of progressive and style-based generators and discriminators, which ``torch.nn`` does not have.

Weights are drawn from N(0, 1) and multiplied by He's constant when they are used, so that Adam gives every layer the
same effective learning rate (Karras et al., 2018, section 4.1). Names of parameters and buffers are those of
StyleGAN2-ADA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import gencore.functional as F
from gencore.nn.noise import standard_normal
from gencore.ops.bias_act import ACTIVATIONS

Taps = Sequence[float] | Sequence[Sequence[float]] | Tensor | None


class FullyConnected(nn.Module):
    """``bias_act(x (weight he)^T + bias)``: a linear layer with an equalised learning rate.

    Args:
        in_features, out_features, bias: as in ``torch.nn.Linear``.
        activation: one of :func:`gencore.functional.bias_act`'s.
        lr_multiplier: makes the layer learn that much slower (0.01 in StyleGAN's mapping network).
        bias_init: initial bias.
        weight_gain: numerator of He's constant, which is ``weight_gain / sqrt(in_features)``; sqrt(2) in ProGAN.
        act_gain: gain of the activation; None: its default.
        impl: which implementation of the ops runs.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
        *,
        weight_gain: float = 1.0,
        act_gain: float | None = None,
        impl: str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(self, activation, in_features=in_features, out_features=out_features)
        if lr_multiplier == 0:
            raise ValueError("FullyConnected: lr_multiplier must not be 0: the layer would never change")
        self.in_features, self.out_features = in_features, out_features
        self.activation, self.act_gain, self.impl = activation, act_gain, impl
        self.weight = nn.Parameter(torch.randn(out_features, in_features, device=device, dtype=dtype) / lr_multiplier)
        initial = torch.full((out_features,), bias_init / lr_multiplier, device=device, dtype=dtype)
        self.bias = nn.Parameter(initial) if bias else None
        self.weight_scale = weight_gain * lr_multiplier / in_features**0.5
        self.bias_scale = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        bias = self.bias if self.bias is None or self.bias_scale == 1 else self.bias * self.bias_scale
        weight = self.weight * self.weight_scale
        if self.activation == "linear" and self.act_gain in (None, 1):
            return F.linear(x, weight, bias, impl=self.impl)
        y = F.linear(x, weight, impl=self.impl)
        return F.bias_act(y, bias, -1, self.activation, gain=self.act_gain, impl=self.impl)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, activation={self.activation!r}"


class EqualizedConv2d(nn.Module):
    """Up- or down-sampling convolution with He's constant at run time, then bias and activation.

    Args:
        in_channels, out_channels, bias: as in ``torch.nn.Conv2d``.
        kernel_size: odd, for the size to be kept; any with a ``padding``.
        activation: one of :func:`gencore.functional.bias_act`'s.
        up, down: 1, or the factor by which the image grows or shrinks.
        resample_filter: taps of the filter for that, such as ``[1, 3, 3, 1]``; None: a single 1.
        clamp: bound of the result's magnitude, or None.
        padding: with respect to the up-sampled image; None: ``kernel_size // 2``.
        weight_gain: numerator of He's constant; sqrt(2) in ProGAN, whose activations have gain 1.
        act_gain: gain of the activation; None: its default.
        impl: which implementation of the ops runs.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Taps = (1, 3, 3, 1),
        clamp: float | None = None,
        *,
        padding: int | None = None,
        weight_gain: float = 1.0,
        act_gain: float | None = None,
        impl: str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(self, activation, clamp, in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        _check(self, activation, up=up, down=down)
        if padding is None:
            _check_odd(self, kernel_size)
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.activation, self.act_gain, self.clamp, self.impl = activation, act_gain, clamp, impl
        self.up, self.down = up, down
        self.padding = kernel_size // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.randn(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None
        self.weight_scale = weight_gain / (in_channels * kernel_size**2) ** 0.5
        _register_filter(self, resample_filter, up > 1 or down > 1, device)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, out_channels, H up / down, W up / down]``, ``gain`` times as large."""
        y = self._convolve(x, self.weight * self.weight_scale)
        if self.bias is None and self.activation == "linear" and self.clamp is None and self.act_gain in (None, 1):
            return y if gain == 1 else y * gain
        return _bias_act(self, y, gain)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        # In one phase a flipped filter costs a copy of the weight; up-sampling takes it as it is only unflipped.
        up, flip_weight = self.up, self.up == 1
        return F.conv2d_resample(
            x, weight, self.resample_filter, up, self.down, self.padding, flip_weight=flip_weight, impl=self.impl
        )

    def extra_repr(self) -> str:
        out_channels, in_channels, *size = self.weight.shape
        text = f"{in_channels}, {out_channels}, kernel_size={tuple(size)}, activation={self.activation!r}"
        return text + (f", up={self.up}" if self.up > 1 else "") + (f", down={self.down}" if self.down > 1 else "")


class ModulatedConv2d(nn.Module):
    """A layer of StyleGAN2's synthesis network: affine map of the style, modulated convolution, noise, ``bias_act``.

    With ``demodulate=False``, ``activation="linear"`` and a 1x1 kernel it is the layer that makes the picture.

    Args:
        in_channels, out_channels, kernel_size: of the convolution; the kernel is odd.
        style_dim: width of the style vector w.
        demodulate: scale the weights of every output channel to norm 1; without it He's constant takes its place.
        up, resample_filter: as in :class:`EqualizedConv2d`.
        noise_resolution: height and width of the result, for a constant noise image of that size and a learned
            strength; None: no noise.
        activation, clamp: as in :class:`EqualizedConv2d`.
        impl: which implementation of the ops runs.
    """

    resample_filter: Tensor | None
    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        *,
        demodulate: bool = True,
        up: int = 1,
        resample_filter: Taps = (1, 3, 3, 1),
        noise_resolution: int | None = None,
        activation: str = "lrelu",
        act_gain: float | None = None,
        clamp: float | None = None,
        impl: str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(self, activation, clamp, in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        _check(self, activation, up=up, style_dim=style_dim)
        _check_odd(self, kernel_size)
        to: dict[str, Any] = {"device": device, "dtype": dtype}
        self.activation, self.act_gain, self.clamp, self.impl = activation, act_gain, clamp, impl
        self.demodulate, self.up, self.padding = demodulate, up, kernel_size // 2
        self.affine = FullyConnected(style_dim, in_channels, bias_init=1.0, impl=impl, **to)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size, **to))
        self.bias = nn.Parameter(torch.zeros(out_channels, **to))
        self.weight_scale = 1.0 if demodulate else 1.0 / (in_channels * kernel_size**2) ** 0.5
        self.noise_strength = None
        if noise_resolution is not None:
            self.register_buffer("noise_const", torch.randn(noise_resolution, noise_resolution, **to))
            self.noise_strength = nn.Parameter(torch.zeros([], **to))
        _register_filter(self, resample_filter, up > 1, device)

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        noise: Tensor | str = "random",
        gain: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``[N, in_channels, H, W]`` and ``[N, style_dim]`` to ``[N, out_channels, H up, W up]``.

        Args:
            noise: ``"random"`` (drawn by ``generator``), ``"const"``, ``"none"``, or the noise itself, which
                ``noise_strength`` multiplies; a layer without noise ignores it.
            gain: of the result, the clamp's bound included.
        """
        style = self.affine(w)
        drawn = None if self.noise_strength is None else self._noise(x, noise, generator)
        default = ACTIVATIONS[self.activation].gain if self.act_gain is None else self.act_gain
        return F.modulated_conv2d(
            x,
            self.weight,
            style if self.weight_scale == 1 else style * self.weight_scale,
            demodulate=self.demodulate,
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,
            noise=drawn,
            noise_strength=None if drawn is None else self.noise_strength,
            bias=self.bias,
            activation=self.activation,
            gain=default * gain,
            clamp=None if self.clamp is None else self.clamp * gain,
            impl=self.impl,
        )

    def _noise(self, x: Tensor, noise: Tensor | str, generator: torch.Generator | None) -> Tensor | None:
        if isinstance(noise, Tensor):
            return noise
        size = (x.shape[0], 1, x.shape[2] * self.up, x.shape[3] * self.up)
        match noise:
            case "random":
                return standard_normal(size, x, generator)
            case "const":
                return self.noise_const
            case "none":
                return None
        raise ValueError(f"ModulatedConv2d: noise must be a Tensor, 'random', 'const' or 'none'; got {noise!r}")

    def extra_repr(self) -> str:
        out_channels, in_channels, *size = self.weight.shape
        text = f"{in_channels}, {out_channels}, kernel_size={tuple(size)}, activation={self.activation!r}"
        text += f", demodulate={self.demodulate}"
        return text + (f", up={self.up}" if self.up > 1 else "")


class MinibatchStdDev(nn.Module):
    """:func:`gencore.functional.minibatch_stddev` as a layer."""

    def __init__(self, group_size: int | None = 4, num_channels: int = 1, impl: str = "auto") -> None:
        super().__init__()
        self.group_size, self.num_channels, self.impl = group_size, num_channels, impl

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C + num_channels, H, W]``."""
        return F.minibatch_stddev(x, self.group_size, self.num_channels, impl=self.impl)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"


class PixelNorm(nn.Module):
    """:func:`gencore.functional.pixel_norm` as a layer."""

    def __init__(self, dim: int = 1, eps: float = 1e-8, impl: str = "auto") -> None:
        super().__init__()
        self.dim, self.eps, self.impl = dim, eps, impl

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_norm(x, self.dim, self.eps, impl=self.impl)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, eps={self.eps}"


class _Resample(nn.Module):
    """What the resampling layers share: the filter.

    Args:
        resample_filter: taps, such as ``[1, 3, 3, 1]``; they are scaled to a sum of 1.
        impl: which implementation of :func:`gencore.functional.upfirdn2d` runs.
    """

    resample_filter: Tensor

    def __init__(self, resample_filter: Taps = (1, 3, 3, 1), impl: str = "auto", device: Any = None) -> None:
        super().__init__()
        self.impl = impl
        _register_filter(self, resample_filter, True, device)

    def extra_repr(self) -> str:
        return f"taps={tuple(self.resample_filter.shape)}"


class Blur(_Resample):
    """:func:`gencore.functional.filter2d` as a layer: the same size, low frequencies only."""

    def forward(self, x: Tensor) -> Tensor:
        return F.filter2d(x, self.resample_filter, impl=self.impl)


class Upsample2d(_Resample):
    """:func:`gencore.functional.upsample2d` as a layer: twice the size."""

    def forward(self, x: Tensor) -> Tensor:
        return F.upsample2d(x, self.resample_filter, impl=self.impl)


class Downsample2d(_Resample):
    """:func:`gencore.functional.downsample2d` as a layer: half the size."""

    def forward(self, x: Tensor) -> Tensor:
        return F.downsample2d(x, self.resample_filter, impl=self.impl)


# --- shared ----------------------------------------------------------------------------------------------------------


def _check(layer: nn.Module, activation: str, clamp: float | None = None, **sizes: int) -> None:
    """Refuses an unknown activation, a negative clamp, and sizes below 1."""
    for name, value in sizes.items():
        if not value >= 1:
            raise ValueError(f"{type(layer).__name__}: {name} must be at least 1, got {value}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"{type(layer).__name__}: clamp must be None or at least 0, got {clamp}")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{type(layer).__name__}: activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}"
        )


def _check_odd(layer: nn.Module, kernel_size: int) -> None:
    if kernel_size % 2 == 0:
        raise ValueError(f"{type(layer).__name__}: kernel_size must be odd, for the size to be kept, got {kernel_size}")


def _register_filter(layer: nn.Module, taps: Taps, wanted: bool, device: Any) -> None:
    """Not part of the ``state_dict``: it is a constant of the architecture."""
    layer.register_buffer("resample_filter", F.setup_filter(taps, device=device) if wanted else None, persistent=False)


def _bias_act(layer: EqualizedConv2d, y: Tensor, gain: float) -> Tensor:
    default = ACTIVATIONS[layer.activation].gain if layer.act_gain is None else layer.act_gain
    clamp = None if layer.clamp is None else layer.clamp * gain
    return F.bias_act(y, layer.bias, 1, layer.activation, gain=default * gain, clamp=clamp, impl=layer.impl)
