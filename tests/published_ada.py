"""stylegan2-ada-pytorch's networks in plain PyTorch, as functions of their weights.

Written from the paper and the names that the project documents, by the plainest formulas: zeros between the pixels, a
weight a sample. It shares nothing with gencore's models.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.published import Shapes, State, fir, lrelu, resample, spread_over_group, synthesize


def ada_states(size: int, widths: dict[int, int], latent: int, depth: int) -> tuple[State, State]:
    """All that is in the ``state_dict`` s of ``G`` and ``D``: random weights, and the filters."""
    shapes_g: Shapes = {"mapping.w_avg": (latent,)}
    shapes_d: Shapes = {}
    filters_g, filters_d = [], []
    for i in range(depth):
        shapes_g |= {f"mapping.fc{i}.weight": (latent, latent), f"mapping.fc{i}.bias": (latent,)}

    def modulated(name: str, i: int, o: int, k: int) -> None:
        shapes_g[f"{name}.weight"], shapes_g[f"{name}.bias"] = (o, i, k, k), (o,)
        shapes_g[f"{name}.affine.weight"], shapes_g[f"{name}.affine.bias"] = (i, latent), (i,)

    def conv(name: str, i: int, o: int, k: int) -> None:
        shapes_d[f"{name}.weight"] = (o, i, k, k)
        filters_d.append(f"{name}.resample_filter")
        if not name.endswith("skip"):
            shapes_d[f"{name}.bias"] = (o,)

    for r in [r for r in widths if r <= size]:
        block, above = f"synthesis.b{r}", widths.get(r // 2, 0)
        filters_g.append(f"{block}.resample_filter")
        if r == 4:
            shapes_g[f"{block}.const"] = (widths[4], 4, 4)
        for name, inputs in (("conv0", above), ("conv1", widths[r])):
            if inputs:
                modulated(f"{block}.{name}", inputs, widths[r], 3)
                shapes_g |= {f"{block}.{name}.noise_strength": (), f"{block}.{name}.noise_const": (r, r)}
                filters_g.append(f"{block}.{name}.resample_filter")
        modulated(f"{block}.torgb", widths[r], 3, 1)
        if r > 4:
            conv(f"b{r}.conv0", widths[r], widths[r], 3)
            conv(f"b{r}.conv1", widths[r], above, 3)
            conv(f"b{r}.skip", widths[r], above, 1)
            filters_d.append(f"b{r}.resample_filter")
    conv(f"b{size}.fromrgb", 3, widths[size], 1)
    last = widths[4]
    conv("b4.conv", last + 1, last, 3)
    shapes_d |= {"b4.fc.weight": (last, 16 * last), "b4.fc.bias": (last,), "b4.out.weight": (1, last)}
    shapes_d["b4.out.bias"] = (1,)
    return (
        synthesize(shapes_g) | {name: fir(1, 3, 3, 1) for name in filters_g},
        synthesize(shapes_d, seed=1) | {name: fir(1, 3, 3, 1) for name in filters_d},
    )


def _dense(state: State, name: str, x: Tensor, rate: float = 1.0) -> Tensor:
    weight = state[f"{name}.weight"] * rate / math.sqrt(x.shape[1])
    return x @ weight.T + state[f"{name}.bias"] * rate


def ada_map(g: State, z: Tensor, *, truncation: float = 1.0) -> Tensor:
    """w [N, style]."""
    w, i = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt(), 0
    while f"mapping.fc{i}.weight" in g:
        w = F.leaky_relu(_dense(g, f"mapping.fc{i}", w, 0.01), 0.2) * math.sqrt(2)
        i += 1
    return g["mapping.w_avg"] + truncation * (w - g["mapping.w_avg"])


def ada_generate(g: State, styles: Tensor) -> Tensor:
    """Images with the stored noise; styles [N, layers, style]. A block's torgb and the next one's conv0 share one."""

    def convolved(x: Tensor, weights: list[Tensor], up: bool) -> Tensor:
        """Each sample by its own weight; up-sampled, weights are turned round, as transposed convolutions do."""
        if up:
            x = resample(x, fir(1, 3, 3, 1) * 4, up=2, pad=(3, 2))
            weights = [w.flip(2, 3) for w in weights]
        padding = 0 if up else weights[0].shape[-1] // 2
        return torch.cat([F.conv2d(one[None], w, padding=padding) for one, w in zip(x, weights, strict=True)])

    def layer(name: str, x: Tensor, w: Tensor, up: bool = False) -> Tensor:
        weights = [g[f"{name}.weight"] * s[None, :, None, None] for s in _dense(g, f"{name}.affine", w)]
        weights = [w / (w.square().sum([1, 2, 3], keepdim=True) + 1e-8).sqrt() for w in weights]
        x = convolved(x, weights, up) + g[f"{name}.noise_strength"] * g[f"{name}.noise_const"]
        return lrelu(x, g[f"{name}.bias"])

    def picture(name: str, x: Tensor, w: Tensor) -> Tensor:
        style = _dense(g, f"{name}.affine", w) / math.sqrt(x.shape[1])
        x = convolved(x, [g[f"{name}.weight"] * s[None, :, None, None] for s in style], False)
        return x + g[f"{name}.bias"].view(-1, 1, 1)

    x = layer("synthesis.b4.conv1", g["synthesis.b4.const"].expand(len(styles), -1, -1, -1), styles[:, 0])
    image, r, i = picture("synthesis.b4.torgb", x, styles[:, 1]), 8, 1
    while f"synthesis.b{r}.conv0.weight" in g:
        x = layer(f"synthesis.b{r}.conv0", x, styles[:, i], up=True)
        x = layer(f"synthesis.b{r}.conv1", x, styles[:, i + 1])
        image = resample(image, fir(1, 3, 3, 1) * 4, up=2, pad=(2, 1))
        image = image + picture(f"synthesis.b{r}.torgb", x, styles[:, i + 2])
        r, i = 2 * r, i + 2
    return image


def ada_discriminate(d: State, x: Tensor) -> Tensor:
    """Logits [N]; the residual architecture."""

    def conv(name: str, x: Tensor, down: bool = False) -> Tensor:
        weight = d[f"{name}.weight"]
        k = weight.shape[-1]
        if down:
            x = resample(x, fir(1, 3, 3, 1), pad=(k // 2 + 1, k // 2 + 1))
        y = F.conv2d(x, weight / math.sqrt(weight[0].numel()), padding=0 if down else k // 2, stride=2 if down else 1)
        return lrelu(y, d[f"{name}.bias"]) if f"{name}.bias" in d else y

    r = x.shape[-1]
    x = conv(f"b{r}.fromrgb", x)
    for size in [r >> i for i in range(r.bit_length() - 3)]:
        y = conv(f"b{size}.conv1", conv(f"b{size}.conv0", x), down=True)
        x = (y + conv(f"b{size}.skip", x, down=True)) / math.sqrt(2)
    x = conv("b4.conv", spread_over_group(x, 4)).flatten(1)
    x = F.leaky_relu(_dense(d, "b4.fc", x), 0.2) * math.sqrt(2)
    return _dense(d, "b4.out", x).flatten()
