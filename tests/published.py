"""Other projects' networks in plain PyTorch, as functions of their weights: shapes by name, and what they compute.

Written from the papers and the projects' documented names, sharing nothing with gencore's models.
"""

from __future__ import annotations

import itertools
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


# --- BigGAN-PyTorch --------------------------------------------------------------------------------------------------


class _Shapes(dict[str, tuple[int, ...]]):
    """Weights by the layer that they belong to."""

    def normal(self, name: str, *shape: int, bias: bool = True) -> None:
        self[f"{name}.weight"], self[f"{name}.u0"], self[f"{name}.sv0"] = shape, (1, shape[0]), (1,)
        if bias:
            self[f"{name}.bias"] = shape[:1]

    def stored(self, name: str, channels: int) -> None:
        self[f"{name}.stored_mean"] = self[f"{name}.stored_var"] = (channels,)

    def norm(self, name: str, channels: int, condition: int, classes: int) -> None:
        self.stored(name, channels)
        for part in ("gain", "bias"):
            if condition:
                self.normal(f"{name}.{part}", channels, condition, bias=False)
            else:
                self[f"{name}.{part}.weight"] = (classes, channels)

    def attention(self, name: str, c: int) -> None:
        for part, shape in (("theta", (c // 8, c)), ("phi", (c // 8, c)), ("g", (c // 2, c)), ("o", (c, c // 2))):
            self.normal(f"{name}.{part}", *shape, 1, 1, bias=False)
        self[f"{name}.gamma"] = ()

    def output(self, channels: int) -> None:
        self["output_layer.0.gain"] = self["output_layer.0.bias"] = (channels,)
        self.stored("output_layer.0", channels)
        self.normal("output_layer.2", 3, channels, 3, 3)

    def head(self, channels: int, classes: int) -> None:
        self.normal("linear", 1, channels)
        self.normal("embed", classes, channels, bias=False)


def biggan_shapes(
    g: list[int], d: list[int], *, latent: int, shared: int, classes: int, attended: tuple[int, int]
) -> tuple[Shapes, Shapes]:
    """Weights of ``G`` and of ``D``, with self-attention after these blocks (-1: none). ``latent``: of a part of z.

    All blocks of the discriminator but the last halve the resolution; without ``shared``, all but the last two.
    """
    generator, discriminator = _Shapes(), _Shapes()
    if shared:
        generator["shared.weight"] = (classes, shared)
    generator.normal("linear", 16 * g[0], latent)
    condition = shared + latent if shared else 0
    for i, (inputs, outputs) in enumerate(itertools.pairwise(g)):
        generator.norm(f"blocks.{i}.0.bn1", inputs, condition, classes)
        generator.norm(f"blocks.{i}.0.bn2", outputs, condition, classes)
        generator.normal(f"blocks.{i}.0.conv1", outputs, inputs, 3, 3)
        generator.normal(f"blocks.{i}.0.conv2", outputs, outputs, 3, 3)
        generator.normal(f"blocks.{i}.0.conv_sc", outputs, inputs, 1, 1)
        if i == attended[0]:
            generator.attention(f"blocks.{i}.1", outputs)
    generator.output(g[-1])
    for i, (inputs, outputs) in enumerate(itertools.pairwise([3, *d])):
        discriminator.normal(f"blocks.{i}.0.conv1", outputs, inputs, 3, 3)
        discriminator.normal(f"blocks.{i}.0.conv2", outputs, outputs, 3, 3)
        if i < len(d) - (1 if shared else 2):
            discriminator.normal(f"blocks.{i}.0.conv_sc", outputs, inputs, 1, 1)
        if i == attended[1]:
            discriminator.attention(f"blocks.{i}.1", outputs)
    discriminator.head(d[-1], classes)
    return generator, discriminator


def biggan_deep_shapes(
    g: list[int], d: list[int], *, latent: int, shared: int, classes: int, attended: tuple[int, int]
) -> tuple[Shapes, Shapes]:
    """The same of BigGAN-deep: two blocks a resolution, attention after these pairs."""
    generator, discriminator = _Shapes(), _Shapes()
    generator["shared.weight"], condition = (classes, shared), latent + shared
    generator.normal("linear", 16 * g[0], condition)

    def convs(shapes: _Shapes, name: str, inputs: int, hidden: int, outputs: int) -> None:
        shapes.normal(f"{name}.conv1", hidden, inputs, 1, 1)
        shapes.normal(f"{name}.conv2", hidden, hidden, 3, 3)
        shapes.normal(f"{name}.conv3", hidden, hidden, 3, 3)
        shapes.normal(f"{name}.conv4", outputs, hidden, 1, 1)

    for i, (inputs, outputs) in enumerate(itertools.pairwise(g)):
        for j in (0, 1):
            name, hidden = f"blocks.{2 * i + j}.0", inputs // 4
            convs(generator, name, inputs, hidden, outputs if j else inputs)
            for n, channels in enumerate((inputs, hidden, hidden, hidden), 1):
                generator.norm(f"{name}.bn{n}", channels, condition, classes)
        if i == attended[0]:
            generator.attention(f"blocks.{2 * i + 1}.1", outputs)
    generator.output(g[-1])
    discriminator.normal("input_conv", d[0], 3, 3, 3)
    for i, (inputs, outputs) in enumerate(itertools.pairwise(d)):
        for j in (0, 1):
            convs(discriminator, f"blocks.{i}.{j}", outputs if j else inputs, outputs // 4, outputs)
        if outputs > inputs:
            discriminator.normal(f"blocks.{i}.0.conv_sc", outputs - inputs, inputs, 1, 1)
        if i == attended[1]:
            discriminator.attention(f"blocks.{i}.2", outputs)
    discriminator.head(d[-1], classes)
    return generator, discriminator


def synthesize_biggan(shapes: Shapes, seed: int = 0) -> State:
    """Random weights; variances that are none are made so."""
    state = synthesize(shapes, seed)
    variances = "stored_var", "running_vars"
    return {name: value.abs() + 0.5 if name.endswith(variances) else value for name, value in state.items()}


class _BigGAN:
    """Layers of BigGAN-PyTorch in evaluation, by name."""

    def __init__(self, state: State) -> None:
        self.state = state

    def has(self, name: str) -> bool:
        return any(key.startswith(f"{name}.") for key in self.state)

    def weight(self, name: str) -> Tensor:
        w = self.state[f"{name}.weight"]
        matrix = w.flatten(1)
        v = F.normalize(self.state[f"{name}.u0"] @ matrix)
        u = F.normalize(v @ matrix.T)
        return w / (v @ matrix.T @ u.T)

    def conv(self, name: str, x: Tensor) -> Tensor:
        w = self.weight(name)
        return F.conv2d(x, w, self.state.get(f"{name}.bias"), padding=w.shape[-1] // 2)

    def norm(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Norm and ReLU; y is a class, or what the layers of gain and bias take."""
        mean, var = self.state[f"{name}.stored_mean"], self.state[f"{name}.stored_var"]
        x = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
        parts = []
        for part in ("gain", "bias"):
            if y.is_floating_point():
                parts.append(y @ self.weight(f"{name}.{part}").T)
            else:
                parts.append(self.state[f"{name}.{part}.weight"][y])
        return F.relu(x * (1 + parts[0][:, :, None, None]) + parts[1][:, :, None, None])

    def attend(self, name: str, x: Tensor) -> Tensor:
        if not self.has(f"{name}.theta"):
            return x
        theta, phi, g = (self.conv(f"{name}.{part}", x) for part in ("theta", "phi", "g"))
        phi, g = F.max_pool2d(phi, 2).flatten(2), F.max_pool2d(g, 2).flatten(2)
        beta = torch.softmax(theta.flatten(2).mT @ phi, -1)
        o = (g @ beta.mT).view(len(x), -1, *x.shape[2:])
        return self.state[f"{name}.gamma"] * self.conv(f"{name}.o", o) + x

    def begin(self, z: Tensor) -> Tensor:
        return (z @ self.weight("linear").T + self.state["linear.bias"]).view(len(z), -1, 4, 4)

    def end(self, x: Tensor) -> Tensor:
        name = "output_layer.0"
        x = F.batch_norm(x, *(self.state[f"{name}.{k}"] for k in ("stored_mean", "stored_var", "gain", "bias")))
        return torch.tanh(self.conv("output_layer.2", F.relu(x)))

    def judge(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.relu(x).sum([2, 3])
        return (h @ self.weight("linear").T + self.state["linear.bias"])[:, 0] + (self.weight("embed")[y] * h).sum(1)


def biggan_generate(g: State, z: Tensor, y: Tensor) -> Tensor:
    net = _BigGAN(g)
    if "shared.weight" in g:
        first, *rest = z.split(g["linear.weight"].shape[1], 1)
        conditions = [torch.cat([g["shared.weight"][y], part], 1) for part in rest]
    else:
        first, conditions = z, [y] * 9
    x, i = net.begin(first), 0
    while net.has(f"blocks.{i}.0"):
        name, condition = f"blocks.{i}.0", conditions[i]
        h = net.conv(f"{name}.conv1", _double(net.norm(f"{name}.bn1", x, condition)))
        h = net.conv(f"{name}.conv2", net.norm(f"{name}.bn2", h, condition))
        x = net.attend(f"blocks.{i}.1", h + net.conv(f"{name}.conv_sc", _double(x)))
        i += 1
    return net.end(x)


def biggan_discriminate(d: State, x: Tensor, y: Tensor) -> Tensor:
    net, i = _BigGAN(d), 0
    while net.has(f"blocks.{i}.0"):
        name = f"blocks.{i}.0"
        h = net.conv(f"{name}.conv2", F.relu(net.conv(f"{name}.conv1", F.relu(x) if i else x)))
        if net.has(f"{name}.conv_sc"):
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(net.conv(f"{name}.conv_sc", x), 2)
        x = net.attend(f"blocks.{i}.1", h + x)
        i += 1
    return net.judge(x, y)


def biggan_deep_generate(g: State, z: Tensor, y: Tensor) -> Tensor:
    net, i = _BigGAN(g), 0
    condition = torch.cat([z, g["shared.weight"][y]], 1)
    x = net.begin(condition)
    while net.has(f"blocks.{i}.0"):
        name, change = f"blocks.{i}.0", _double if i % 2 else (lambda t: t)
        h = net.conv(f"{name}.conv1", net.norm(f"{name}.bn1", x, condition))
        h = net.conv(f"{name}.conv2", change(net.norm(f"{name}.bn2", h, condition)))
        h = net.conv(f"{name}.conv3", net.norm(f"{name}.bn3", h, condition))
        h = net.conv(f"{name}.conv4", net.norm(f"{name}.bn4", h, condition))
        x = net.attend(f"blocks.{i}.1", h + change(x[:, : h.shape[1]]))
        i += 1
    return net.end(x)


def biggan_deep_discriminate(d: State, x: Tensor, y: Tensor) -> Tensor:
    net, i = _BigGAN(d), 0
    x = net.conv("input_conv", x)
    while net.has(f"blocks.{i}.0"):
        for j in (0, 1):
            name, change = f"blocks.{i}.{j}", (lambda t: t) if j else (lambda t: F.avg_pool2d(t, 2))
            h = net.conv(f"{name}.conv1", F.relu(x))
            h = net.conv(f"{name}.conv3", F.relu(net.conv(f"{name}.conv2", F.relu(h))))
            h, x = net.conv(f"{name}.conv4", change(F.relu(h))), change(x)
            if net.has(f"{name}.conv_sc"):
                x = torch.cat([x, net.conv(f"{name}.conv_sc", x)], 1)
            x = h + x
        x = net.attend(f"blocks.{i}.2", x)
        i += 1
    return net.judge(x, y)


# --- Hugging Face's pytorch-pretrained-BigGAN ------------------------------------------------------------------------


def huggingface_shapes(g: list[int], *, latent: int, classes: int, attention: int, computed: int) -> Shapes:
    """Weights of BigGAN-deep's generator, with attention as its layer of that number."""
    shapes: Shapes = {"embeddings.weight": (latent, classes)}

    def normal(name: str, *shape: int, bias: bool = True) -> None:
        columns = math.prod(shape[1:])
        shapes[f"{name}.weight_orig"] = shape
        shapes[f"{name}.weight_u"], shapes[f"{name}.weight_v"] = shape[:1], (columns,)
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def stored(name: str, channels: int) -> None:
        shapes[f"{name}.running_means"] = shapes[f"{name}.running_vars"] = (51, channels)

    normal("generator.gen_z", 16 * g[0], 2 * latent)
    blocks = [(a, b) for inputs, outputs in itertools.pairwise(g) for a, b in ((inputs, inputs), (inputs, outputs))]
    for i, (inputs, outputs) in enumerate(blocks):
        name, hidden = f"generator.layers.{i + (i >= attention)}", inputs // 4
        for n, (a, b, k) in enumerate(
            ((inputs, hidden, 1), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, outputs, 1))
        ):
            normal(f"{name}.conv_{n}", b, a, k, k)
            stored(f"{name}.bn_{n}", a)
            normal(f"{name}.bn_{n}.scale", a, 2 * latent, bias=False)
            normal(f"{name}.bn_{n}.offset", a, 2 * latent, bias=False)
    c, name = blocks[attention][0], f"generator.layers.{attention}"
    for part, shape in (("theta", (c // 8, c)), ("phi", (c // 8, c)), ("g", (c // 2, c)), ("o_conv", (c, c // 2))):
        normal(f"{name}.snconv1x1_{part}", *shape, 1, 1, bias=False)
    shapes[f"{name}.gamma"] = (1,)
    shapes["generator.bn.weight"] = shapes["generator.bn.bias"] = (g[-1],)
    stored("generator.bn", g[-1])
    normal("generator.conv_to_rgb", computed, g[-1], 3, 3)
    return shapes


def huggingface_generate(state: State, z: Tensor, y: Tensor) -> Tensor:
    """Images with the statistics of z that is not truncated."""

    def weight(name: str) -> Tensor:
        w = state[f"{name}.weight_orig"]
        return w / (state[f"{name}.weight_u"] @ w.flatten(1) @ state[f"{name}.weight_v"])

    def conv(name: str, x: Tensor) -> Tensor:
        w = weight(name)
        return F.conv2d(x, w, state.get(f"{name}.bias"), padding=w.shape[-1] // 2)

    def norm(name: str, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        mean, var = (state[f"{name}.running_{k}"][50, :, None, None] for k in ("means", "vars"))
        return F.relu((x - mean) / (var + 1e-4).sqrt() * gain[..., None, None] + bias[..., None, None])

    condition = torch.cat(
        [z, F.one_hot(y, state["embeddings.weight"].shape[1]).to(z) @ state["embeddings.weight"].T], 1
    )
    x = (condition @ weight("generator.gen_z").T + state["generator.gen_z.bias"]).view(len(z), 4, 4, -1)
    x, i, blocks = x.permute(0, 3, 1, 2), 0, 0
    while any(key.startswith(f"generator.layers.{i}.") for key in state):
        name = f"generator.layers.{i}"
        i += 1
        if f"{name}.gamma" in state:
            theta, phi, g = (conv(f"{name}.snconv1x1_{part}", x) for part in ("theta", "phi", "g"))
            beta = torch.softmax(theta.flatten(2).mT @ F.max_pool2d(phi, 2).flatten(2), -1)
            o = (F.max_pool2d(g, 2).flatten(2) @ beta.mT).view(len(x), -1, *x.shape[2:])
            x = x + state[f"{name}.gamma"] * conv(f"{name}.snconv1x1_o_conv", o)
            continue
        change = _double if blocks % 2 else (lambda t: t)
        blocks, h = blocks + 1, x
        for n in range(4):
            bn = f"{name}.bn_{n}"
            h = norm(bn, h, 1 + condition @ weight(f"{bn}.scale").T, condition @ weight(f"{bn}.offset").T)
            h = conv(f"{name}.conv_{n}", change(h) if n == 1 else h)
        x = h + change(x[:, : h.shape[1]])
    x = norm("generator.bn", x, state["generator.bn.weight"], state["generator.bn.bias"])
    return torch.tanh(conv("generator.conv_to_rgb", x)[:, :3])
