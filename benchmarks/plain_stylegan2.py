"""StyleGAN2 as eager PyTorch code writes it: the peers of our StyleGAN2, with the very same weights.

The reference implementation inserts zeros and convolves them: nobody would run that. Here up-sampling is a transposed
convolution and then a depthwise filter, down-sampling a filter and then a strided convolution, and a modulated
convolution is either of the two formulations in use:

* ``"grouped"``: a weight for every sample, and one convolution with a group for each;
* ``"scaled"``: the input channels scaled by the style, one convolution, the output channels scaled back.
"""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gencore.models import StyleGAN2
from gencore.nn import EqualizedConv2d, FullyConnected, ModulatedConv2d, Upsample2d

FORMULATIONS = ("grouped", "scaled")


def plain_stylegan2(model: StyleGAN2, formulation: str) -> StyleGAN2:
    """A copy of ``model`` whose layers run on ``torch.nn.functional`` alone."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        for cls, twin in _TWINS.items():
            if type(module) is cls:
                module.__class__ = twin
        if hasattr(module, "impl"):
            module.impl = "reference"  # what is left is pointwise or tiny
        if isinstance(module, ModulatedConv2d):
            module.formulation = formulation
    return plain


class _Linear(FullyConnected):
    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.bias_scale
        y = F.linear(x, self.weight * self.weight_scale, bias)
        return y if self.activation == "linear" else _lrelu(y)


class _Conv2d(EqualizedConv2d):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        weight = self.weight * self.weight_scale
        if self.down == 2:
            k = weight.shape[-1]
            x = _filter(x, self.resample_filter, (k + 2) // 2, (k + 1) // 2)
            y = F.conv2d(x, weight, self.bias, stride=2)
        else:
            y = F.conv2d(x, weight, self.bias, padding=self.padding)
        y = y if self.activation == "linear" else _lrelu(y)
        return y if gain == 1 else y * gain


class _Modulated(ModulatedConv2d):
    formulation = "grouped"

    def forward(self, x: Tensor, w: Tensor, noise: Any = "none", gain: float = 1.0, generator: Any = None) -> Tensor:
        style = self.affine(w) * self.weight_scale
        y = (_grouped if self.formulation == "grouped" else _scaled)(x, self.weight, style, self.demodulate, self.up)
        if self.up == 2:
            y = _filter(y, self.resample_filter * 4, 1, 1)
        if isinstance(noise, Tensor) and self.noise_strength is not None:
            y = y + noise * self.noise_strength
        y = y + self.bias.view(-1, 1, 1)
        return y if self.activation == "linear" else _lrelu(y)


class _Upsample(Upsample2d):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, 1, 0, 0, 0, 1)).reshape(n, c, 2 * h, 2 * w)
        return _filter(x, self.resample_filter * 4, 2, 1)


_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    FullyConnected: _Linear,
    EqualizedConv2d: _Conv2d,
    ModulatedConv2d: _Modulated,
    Upsample2d: _Upsample,
}


def _grouped(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: int) -> Tensor:
    n, i, h, w = x.shape
    own = weight * style[:, None, :, None, None]
    if demodulate:
        own = own * (own.square().sum([2, 3, 4], keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, n * i, h, w)
    if up == 2:
        y = F.conv_transpose2d(x, own.transpose(1, 2).flatten(0, 1), stride=2, groups=n)
    else:
        y = F.conv2d(x, own.flatten(0, 1), padding=weight.shape[-1] // 2, groups=n)
    return y.reshape(n, -1, *y.shape[2:])


def _scaled(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: int) -> Tensor:
    x = x * style[:, :, None, None]
    if up == 2:
        y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    else:
        y = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    if demodulate:
        norm = style.square() @ weight.square().sum([2, 3]).T
        y = y * (norm + 1e-8).rsqrt()[:, :, None, None]
    return y


def _filter(x: Tensor, taps: Tensor, before: int, after: int) -> Tensor:
    x = F.pad(x, (before, after, before, after))
    c = x.shape[1]
    return F.conv2d(x, taps.flip(0, 1).to(x.dtype).expand(c, 1, *taps.shape), groups=c)


def _lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2) * 2**0.5
