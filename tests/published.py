"""Other projects' networks in plain PyTorch, as functions of their weights: shapes by name, and what they compute.

Written from the papers and the projects' documented names, sharing nothing with gencore's models.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def synthesize(shapes: Shapes, seed: int = 0) -> State:
    """Random weights of these shapes; biases, strengths and averages too, so that nothing is 0 by chance."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def fir(*taps: float) -> Tensor:
    row = torch.tensor(taps)
    return torch.outer(row, row) / row.sum() ** 2


def resample(x: Tensor, kernel: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int]) -> Tensor:
    """Zeros between the pixels, padding on both sides, a filter, every so many pixels."""
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, h * up, w * up)
    spread[:, :, ::up, ::up] = x
    spread = F.pad(spread, (pad[0], pad[1], pad[0], pad[1]))
    taps = kernel.to(x).flip(0, 1).expand(c, 1, *kernel.shape)
    return F.conv2d(spread, taps, groups=c)[:, :, ::down, ::down]


def lrelu(x: Tensor, bias: Tensor, gain: float = math.sqrt(2)) -> Tensor:
    return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.dim() - 2)), 0.2) * gain


def spread_over_group(x: Tensor, group: int) -> Tensor:
    """x and one map more: the standard deviation over samples n, n + N / group, ..., averaged."""
    count = len(x) // group
    maps = [
        (x[i % count :: count].var(0, unbiased=False) + 1e-8).sqrt().mean().expand(1, *x.shape[2:])
        for i in range(len(x))
    ]
    return torch.cat([x, torch.stack(maps)], 1)


# --- rosinality/stylegan2-pytorch ------------------------------------------------------------------------------------


def rosinality_shapes(size: int, widths: dict[int, int], style: int, depth: int) -> tuple[Shapes, Shapes]:
    """Weights of ``g`` and of ``d``, without the filters."""
    g: Shapes = {"input.input": (1, widths[4], 4, 4)}
    for i in range(1, depth + 1):
        g |= {f"style.{i}.weight": (style, style), f"style.{i}.bias": (style,)}

    def conv(name: str, i: int, o: int, k: int) -> None:
        g[f"{name}.conv.weight"] = (1, o, i, k, k)
        g[f"{name}.conv.modulation.weight"], g[f"{name}.conv.modulation.bias"] = (i, style), (i,)
        if k == 3:
            g[f"{name}.noise.weight"], g[f"{name}.activate.bias"] = (1,), (o,)
        else:
            g[f"{name}.bias"] = (1, 3, 1, 1)

    conv("conv1", widths[4], widths[4], 3)
    conv("to_rgb1", widths[4], 3, 1)
    g["noises.noise_0"] = (1, 1, 4, 4)
    steps = [r for r in widths if 8 <= r <= size]
    for i, r in enumerate(steps):
        conv(f"convs.{2 * i}", widths[r // 2], widths[r], 3)
        conv(f"convs.{2 * i + 1}", widths[r], widths[r], 3)
        conv(f"to_rgbs.{i}", widths[r], 3, 1)
        g[f"noises.noise_{2 * i + 1}"] = g[f"noises.noise_{2 * i + 2}"] = (1, 1, r, r)
    d: Shapes = {"convs.0.0.weight": (widths[size], 3, 1, 1), "convs.0.1.bias": (widths[size],)}
    for i, r in enumerate(reversed(steps), start=1):
        wide, narrow = widths[r // 2], widths[r]
        d |= {f"convs.{i}.conv1.0.weight": (narrow, narrow, 3, 3), f"convs.{i}.conv1.1.bias": (narrow,)}
        d |= {f"convs.{i}.conv2.1.weight": (wide, narrow, 3, 3), f"convs.{i}.conv2.2.bias": (wide,)}
        d[f"convs.{i}.skip.1.weight"] = (wide, narrow, 1, 1)
    w = widths[4]
    d |= {"final_conv.0.weight": (w, w + 1, 3, 3), "final_conv.1.bias": (w,)}
    d |= {"final_linear.0.weight": (w, 16 * w), "final_linear.0.bias": (w,)}
    d |= {"final_linear.1.weight": (1, w), "final_linear.1.bias": (1,)}
    return g, d


def rosinality_filters(size: int) -> tuple[State, State]:
    """The buffers that the weights are saved with."""
    g, d, kernel = {}, {}, fir(1, 3, 3, 1)
    steps = range(size.bit_length() - 3)
    for i in steps:
        g |= {f"convs.{2 * i}.conv.blur.kernel": kernel * 4, f"to_rgbs.{i}.upsample.kernel": kernel * 4}
        d |= {f"convs.{i + 1}.conv2.0.kernel": kernel, f"convs.{i + 1}.skip.0.kernel": kernel}
    return g, d


def rosinality_map(g: State, z: Tensor) -> Tensor:
    x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    i = 1
    while f"style.{i}.weight" in g:
        x = lrelu(x @ (g[f"style.{i}.weight"] * 0.01 / math.sqrt(x.shape[1])).T, g[f"style.{i}.bias"] * 0.01)
        i += 1
    return x


def rosinality_generate(g: State, styles: Tensor) -> Tensor:
    """Images with the stored noise; styles [N, layers, style]."""

    def modulated(name: str, x: Tensor, w: Tensor, up: bool = False) -> Tensor:
        weight = g[f"{name}.conv.weight"][0]
        style = w @ (g[f"{name}.conv.modulation.weight"] / math.sqrt(w.shape[1])).T + g[f"{name}.conv.modulation.bias"]
        outputs = []
        for sample, s in zip(x, style, strict=True):
            own = weight / math.sqrt(weight[0].numel()) * s[None, :, None, None]
            if "rgb" not in name:
                own = own * (own.square().sum([1, 2, 3], keepdim=True) + 1e-8).rsqrt()
            if up:
                y = F.conv_transpose2d(sample[None], own.transpose(0, 1), stride=2)
                y = resample(y, fir(1, 3, 3, 1) * 4, pad=(1, 1))
            else:
                y = F.conv2d(sample[None], own, padding=weight.shape[-1] // 2)
            outputs.append(y)
        return torch.cat(outputs)

    def styled(name: str, number: int, x: Tensor, w: Tensor, up: bool = False) -> Tensor:
        y = modulated(name, x, w, up) + g[f"{name}.noise.weight"] * g[f"noises.noise_{number}"]
        return lrelu(y, g[f"{name}.activate.bias"])

    x = styled("conv1", 0, g["input.input"].expand(len(styles), -1, -1, -1), styles[:, 0])
    image = modulated("to_rgb1", x, styles[:, 1]) + g["to_rgb1.bias"]
    i = 0
    while f"to_rgbs.{i}.bias" in g:
        x = styled(f"convs.{2 * i}", 2 * i + 1, x, styles[:, 2 * i + 1], up=True)
        x = styled(f"convs.{2 * i + 1}", 2 * i + 2, x, styles[:, 2 * i + 2])
        image = resample(image, fir(1, 3, 3, 1) * 4, up=2, pad=(2, 1))
        image = image + modulated(f"to_rgbs.{i}", x, styles[:, 2 * i + 3]) + g[f"to_rgbs.{i}.bias"]
        i += 1
    return image


def rosinality_discriminate(d: State, x: Tensor) -> Tensor:
    kernel = fir(1, 3, 3, 1)

    def conv(weight: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, d[weight] / math.sqrt(d[weight][0].numel()), **options)

    x = lrelu(conv("convs.0.0.weight", x), d["convs.0.1.bias"])
    i = 1
    while f"convs.{i}.skip.1.weight" in d:
        y = lrelu(conv(f"convs.{i}.conv1.0.weight", x, padding=1), d[f"convs.{i}.conv1.1.bias"])
        y = conv(f"convs.{i}.conv2.1.weight", resample(y, kernel, pad=(2, 2)), stride=2)
        y = lrelu(y, d[f"convs.{i}.conv2.2.bias"])
        x = (y + conv(f"convs.{i}.skip.1.weight", resample(x, kernel, pad=(1, 1)), stride=2)) / math.sqrt(2)
        i += 1
    x = spread_over_group(x, 4)
    x = lrelu(conv("final_conv.0.weight", x, padding=1), d["final_conv.1.bias"]).flatten(1)
    w0, w1 = d["final_linear.0.weight"], d["final_linear.1.weight"]
    x = lrelu(x @ (w0 / math.sqrt(w0.shape[1])).T, d["final_linear.0.bias"])
    return (x @ (w1 / math.sqrt(w1.shape[1])).T + d["final_linear.1.bias"]).flatten()


# --- genforce: PGGAN and StyleGAN ------------------------------------------------------------------------------------


def genforce_shapes(size: int, widths: dict[int, int], latent: int, *, channels: int = 3) -> tuple[Shapes, Shapes]:
    """Weights of PGGAN's generator and discriminator."""
    g: Shapes = {"layer0.weight": (widths[4], latent, 4, 4), "layer0.bias": (widths[4],), "lod": ()}
    d: Shapes = {"lod": ()}
    sizes = [r for r in widths if r <= size]
    for i, r in enumerate(sizes):
        if r > 4:
            g |= {f"layer{2 * i}.weight": (widths[r], widths[r // 2], 3, 3), f"layer{2 * i}.bias": (widths[r],)}
        g |= {f"layer{2 * i + 1}.weight": (widths[r], widths[r], 3, 3), f"layer{2 * i + 1}.bias": (widths[r],)}
        g |= {f"output{i}.weight": (channels, widths[r], 1, 1), f"output{i}.bias": (channels,)}
    for i, r in enumerate(reversed(sizes)):
        d |= {f"input{i}.weight": (widths[r], channels, 1, 1), f"input{i}.bias": (widths[r],)}
        more = 0 if r > 4 else 1
        d |= {f"layer{2 * i}.weight": (widths[r], widths[r] + more, 3, 3), f"layer{2 * i}.bias": (widths[r],)}
        out = widths[r // 2] if r > 4 else widths[4]
        d[f"layer{2 * i + 1}.weight"] = (out, widths[r], 3, 3) if r > 4 else (out, 16 * widths[4])
        d[f"layer{2 * i + 1}.bias"] = (out,)
    last = 2 * len(sizes)
    return g, d | {f"layer{last}.weight": (1, widths[4]), f"layer{last}.bias": (1,)}


def _he(weight: Tensor, gain: float = math.sqrt(2)) -> Tensor:
    return weight * gain / math.sqrt(weight[0].numel())


def _pixel_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def _double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def genforce_progan_generate(g: State, z: Tensor) -> Tensor:
    x, i = _pixel_norm(z)[:, :, None, None], 0
    while f"layer{i}.weight" in g:
        x = _pixel_norm(_double(x) if i and i % 2 == 0 else x)
        x = F.conv2d(x, _he(g[f"layer{i}.weight"]), padding=1 if i else 3)
        x = lrelu(x, g[f"layer{i}.bias"], 1)
        i += 1
    last = i // 2 - 1
    return F.conv2d(_pixel_norm(x), _he(g[f"output{last}.weight"], 1), g[f"output{last}.bias"])


def genforce_discriminate(d: State, x: Tensor, *, blur: bool) -> Tensor:
    """PGGAN's; with ``blur``, StyleGAN's."""
    x, i = lrelu(F.conv2d(x, _he(d["input0.weight"])), d["input0.bias"], 1), 0
    while x.shape[-1] > 4:
        x = lrelu(F.conv2d(x, _he(d[f"layer{i}.weight"]), padding=1), d[f"layer{i}.bias"], 1)
        x = resample(x, fir(1, 2, 1), pad=(1, 1)) if blur else x
        x = F.conv2d(x, _he(d[f"layer{i + 1}.weight"]), padding=1)
        bias = d[f"layer{i + 1}.bias"]
        x = lrelu(F.avg_pool2d(x, 2), bias, 1) if blur else F.avg_pool2d(lrelu(x, bias, 1), 2)
        i += 2
    x = F.conv2d(spread_over_group(x, 4), _he(d[f"layer{i}.weight"]), padding=1)
    x = lrelu(x, d[f"layer{i}.bias"], 1).flatten(1)
    x = lrelu(x @ _he(d[f"layer{i + 1}.weight"]).T, d[f"layer{i + 1}.bias"], 1)
    return (x @ _he(d[f"layer{i + 2}.weight"], 1).T + d[f"layer{i + 2}.bias"]).flatten()


def genforce_stylegan_shapes(size: int, widths: dict[int, int], latent: int, depth: int) -> Shapes:
    """Weights of StyleGAN's generator; its discriminator's are PGGAN's."""
    g: Shapes = {"truncation.w_avg": (latent,), "synthesis.lod": ()}
    for i in range(depth):
        g |= {f"mapping.dense{i}.weight": (latent, latent), f"mapping.dense{i}.bias": (latent,)}
    for i, r in enumerate([r for r in widths if r <= size]):
        for j, inputs in ((0, widths.get(r // 2)), (1, widths[r])):
            name = f"synthesis.layer{2 * i + j}"
            if inputs is None:
                g[f"{name}.const"] = (1, widths[4], 4, 4)
            else:
                g[f"{name}.weight"] = (widths[r], inputs, 3, 3)
            g |= {f"{name}.bias": (widths[r],), f"{name}.apply_noise.weight": (widths[r],)}
            g |= {f"{name}.apply_noise.noise": (1, 1, r, r)}
            g |= {f"{name}.style.weight": (2 * widths[r], latent), f"{name}.style.bias": (2 * widths[r],)}
        g |= {f"synthesis.output{i}.weight": (3, widths[r], 1, 1), f"synthesis.output{i}.bias": (3,)}
    return g


def genforce_stylegan_generate(g: State, z: Tensor) -> Tensor:
    """Images with the stored noise."""
    w, i = _pixel_norm(z), 0
    while f"mapping.dense{i}.weight" in g:
        weight = g[f"mapping.dense{i}.weight"]
        w = lrelu(w @ (_he(weight) * 0.01).T, g[f"mapping.dense{i}.bias"] * 0.01, 1)
        i += 1
    x, i = g["synthesis.layer0.const"].expand(len(z), -1, -1, -1), 0
    while f"synthesis.layer{i}.bias" in g:
        part = {k.removeprefix(f"synthesis.layer{i}."): v for k, v in g.items() if k.startswith(f"synthesis.layer{i}.")}
        if i and i % 2 == 0:
            x = resample(F.conv2d(_double(x), _he(part["weight"]), padding=1), fir(1, 2, 1), pad=(1, 1))
        elif i:
            x = F.conv2d(x, _he(part["weight"]), padding=1)
        x = lrelu(x + part["apply_noise.weight"].view(1, -1, 1, 1) * part["apply_noise.noise"], part["bias"], 1)
        x = x - x.mean([2, 3], keepdim=True)
        x = x / (x.square().mean([2, 3], keepdim=True) + 1e-8).sqrt()
        scale, shift = (w @ _he(part["style.weight"], 1).T + part["style.bias"])[:, :, None, None].chunk(2, 1)
        x = x * (scale + 1) + shift
        i += 1
    last = i // 2 - 1
    return F.conv2d(x, _he(g[f"synthesis.output{last}.weight"], 1), g[f"synthesis.output{last}.bias"])
