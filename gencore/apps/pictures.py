"""Pictures of what a model has learned, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gencore.models.vae import VAE
from gencore.optional import require
from gencore.train.gan import GANTraining


def save_grid(images: Tensor, path: Path, *, columns: int, scale: int = 2) -> None:
    """Write ``[N, C, H, W]`` images in [-1, 1] as one picture, row by row, each pixel ``scale`` pixels wide."""
    image_module = require("PIL.Image", extra="bench", purpose="writing pictures")
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    canvas = torch.full((rows * columns, channels, height, width), -1.0)
    canvas[:count] = images.detach().float().clamp(-1, 1)
    tiled = canvas.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    pixels = ((tiled.reshape(channels, rows * height, columns * width) + 1) * 127.5).round().byte()
    array = pixels[0].numpy() if channels == 1 else pixels.permute(1, 2, 0).numpy()
    picture = image_module.fromarray(array)
    picture = picture.resize((picture.width * scale, picture.height * scale), image_module.Resampling.NEAREST)
    picture.save(path, optimize=True)


@torch.no_grad()
def reconstructions(model: VAE, images: Tensor) -> Tensor:
    """Each image, then what the VAE makes of it: ``[2 N, C, H, W]`` in [-1, 1]."""
    model.eval()
    mu, _ = model.encode((images + 1) / 2)
    return torch.stack([images, model.decode(mu) * 2 - 1], dim=1).flatten(0, 1)


@torch.no_grad()
def vae_samples(model: VAE, count: int, seed: int) -> Tensor:
    """Mean images of z drawn from the prior, ``[count, C, H, W]`` in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return model.eval().decode(model.sample_latent(count, generator=generator)) * 2 - 1


def gan_samples(training: GANTraining, count: int, seed: int) -> Tensor:
    """Images of the averaged generator, ``[count, C, H, W]`` in [-1, 1]."""
    return training.sample(training.model.sample_latent(count, generator=torch.Generator().manual_seed(seed)))


def beside_nearest(samples: Tensor, train: Tensor) -> Tensor:
    """Each sample, then the training image at the least distance (in the 2-norm): ``[2 N, C, H, W]``.

    Goodfellow et al., "Generative Adversarial Nets", 2014, figure 2: samples that are copies would show.
    """
    distances = torch.cdist(samples.flatten(1), train.flatten(1))
    return torch.stack([samples, train[distances.argmin(1)]], dim=1).flatten(0, 1)


def gan_walk(training: GANTraining, *, rows: int, columns: int, seed: int) -> Tensor:
    """In each row a straight walk through z, from one random point to another: ``[rows * columns, C, H, W]``."""
    ends = training.model.sample_latent(2 * rows, generator=torch.Generator().manual_seed(seed))
    return training.sample(_between(ends[:rows], ends[rows:], columns))


@torch.no_grad()
def vae_walk(model: VAE, start: Tensor, end: Tensor, *, columns: int) -> Tensor:
    """In each row a straight walk from the code of one image to that of another."""
    model.eval()
    a, b = (model.encode((images + 1) / 2)[0] for images in (start, end))
    return model.decode(_between(a, b, columns)) * 2 - 1


@torch.no_grad()
def manifold(model: VAE, side: int) -> Tensor:
    """What a VAE with two latent dimensions draws at ``side * side`` points, equally likely under the prior.

    Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, figure 4.
    """
    # The quantiles of the normal distribution spread the points as the prior spreads its mass.
    quantiles = torch.special.ndtri((torch.arange(side) + 0.5) / side)
    z = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(1)
    return model.eval().decode(z) * 2 - 1


def save_curves(panels: dict[str, Sequence[dict[str, float]]], path: Path, *, smooth: int = 25) -> None:
    """One panel a training: its metrics against the step, as running means over ``smooth`` steps."""
    require("matplotlib", extra="bench", purpose="drawing the loss curves")
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, history) in zip(axes, panels.items(), strict=True):
        window = max(1, min(smooth, len(history) // 4))
        for name in history[0]:
            values = torch.tensor([entry[name] for entry in history], dtype=torch.float64)
            mean = values.unfold(0, window, 1).mean(1)
            axis.plot(range(window, len(history) + 1), mean, label=name.replace("_", " "), linewidth=1.3)
        axis.set(title=title, xlabel="step")
        if max(entry[name] for entry in history for name in entry) > 50:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def save_scatter(panels: dict[str, Tensor], labels: Tensor, path: Path) -> None:
    """One panel for each set of points ``[N, 2]``, coloured by ``labels`` ``[N]``."""
    require("matplotlib", extra="bench", purpose="drawing latent codes")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        for label in labels.unique().tolist():
            chosen = points[labels == label]
            axis.scatter(chosen[:, 0], chosen[:, 1], s=6, color=f"C{label}", label=str(label))
        axis.set(title=title)
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize=8, markerscale=2)
    figure.savefig(path, dpi=110)


def _between(start: Tensor, end: Tensor, columns: int) -> Tensor:
    weights = torch.linspace(0, 1, columns)[:, None]
    return torch.cat([torch.lerp(a, b, weights) for a, b in zip(start, end, strict=True)])


__all__ = [
    "beside_nearest",
    "gan_samples",
    "gan_walk",
    "manifold",
    "reconstructions",
    "save_curves",
    "save_grid",
    "save_scatter",
    "vae_samples",
    "vae_walk",
]
