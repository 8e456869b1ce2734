"""Faces drawn by a ProGAN while it grows, and by a StyleGAN2 as its styles and its noise are exchanged."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gencore.apps.pictures import beside_nearest, save_curves
from gencore.apps.tools import caching, grid
from gencore.data import orl_faces
from gencore.models import create_model
from gencore.models.styles import NOISE_SETTINGS, Noise, mix_styles
from gencore.train import Growth, ProGANTraining, StyleGANTraining, fit
from gencore.train.growth import match

# Narrow networks: in a few minutes on a CPU, many small steps make better faces than few large ones.
SMALL: dict[str, Any] = {"channels": 1, "latent": 64, "channel_budget": 512, "max_channels": 64}
BATCH = 16
SIZE = 32

# The groups of a network of this size: the paper's are those of 1024 pixels.
GROUPS = {"coarse": (4, 4), "middle": (8, 8), "fine": (16, SIZE)}
NOISE_BOUNDARY = 16


def progan(out: Path, *, seconds: float, steps: int | None, console: Any) -> list[Path]:
    """The same z at 4x4, 8x8, 16x16 and 32x32 as the networks grow; samples, and the faces nearest to them."""
    torch.manual_seed(0)
    growth = Growth(SIZE, stable=2000, fade=2000)
    training = ProGANTraining(create_model("progan_32", **SMALL), growth=growth, learning_rate=2e-3)
    faces, z, pictures = _faces(), _latent(training, 16), []
    deadline = time.monotonic() + seconds
    with caching():
        for resolution in (4, 8, 16, SIZE):
            images_at_end = (growth.stable + growth.fade) * int(math.log2(resolution // 4)) + growth.stable
            last = 10**9 if resolution == SIZE else images_at_end // BATCH
            left = deadline - time.monotonic()
            goal = last if steps is None else min(last, steps)
            if len(training.history) >= goal or left <= 0:
                continue
            _train(training, faces, goal, left, f"ProGAN, up to {resolution}x{resolution}", console)
            reached = training.model.discriminator.now()[0]
            grown = torch.nn.functional.interpolate(training.sample(z), size=SIZE)
            real = match(faces[:400:25], reached, 1.0)
            real = torch.nn.functional.interpolate(real, size=SIZE)
            pictures.append(grid(torch.cat([grown, real]), out / f"progan_at_{reached}x{reached}.png", columns=16))
    samples = torch.nn.functional.interpolate(training.sample(_latent(training, 64, seed=2)), size=SIZE)
    pictures.append(grid(samples, out / "progan_samples.png", columns=16))
    pictures.append(grid(beside_nearest(samples[:32], faces), out / "progan_neighbours.png", columns=16))
    pictures.append(_curves("ProGAN", training, out / "progan_losses.png"))
    return list(dict.fromkeys(pictures))


def stylegan2(out: Path, *, seconds: float, steps: int | None, console: Any) -> list[Path]:
    """Samples, truncation, style mixing, the noise ablation, and the faces nearest to the samples."""
    torch.manual_seed(0)
    model = create_model("stylegan2_32", **SMALL, style=64, mapping_layers=4)
    training = StyleGANTraining(model, gamma=0.3)
    faces = _faces()
    with caching():
        _train(training, faces, steps or 10**9, seconds, "StyleGAN2", console)
    samples = training.sample(_latent(training, 64, seed=2), noise="const")
    generator = training.averaged.module
    return [
        grid(samples, out / "stylegan2_samples.png", columns=16),
        grid(truncations(generator, _latent(training, 16)), out / "stylegan2_truncation.png", columns=16),
        grid(
            mixing_grid(generator, _latent(training, 9), _latent(training, 8, seed=3)),
            out / "stylegan2_mixing.png",
            columns=9,
        ),
        grid(noise_ablation(generator, _latent(training, 8)), out / "stylegan2_noise.png", columns=8),
        grid(noise_deviation(generator, _latent(training, 8)), out / "stylegan2_noise_stddev.png", columns=8),
        grid(beside_nearest(samples[:32], faces), out / "stylegan2_neighbours.png", columns=16),
        _curves("StyleGAN2", training, out / "stylegan2_losses.png"),
    ]


@torch.no_grad()
def truncations(generator: Any, z: Tensor) -> Tensor:
    """A row for each psi from 0, the average face, to 1: ``[5 N, C, H, W]``. Karras et al. 2019, figure 8."""
    return torch.cat([generator(z, truncation=psi, noise="const") for psi in (0.0, 0.25, 0.5, 0.75, 1.0)])


@torch.no_grad()
def mixing_grid(generator: Any, a: Tensor, b: Tensor) -> Tensor:
    """Faces of ``a`` down the left, of ``b`` along the top, and where they meet a's with some styles of b's.

    A third of the rows copy the coarse styles, a third the middle ones, a third the fine ones. Karras et al. 2019,
    figure 3.
    """
    styles_a, styles_b = generator.mapping(a), generator.mapping(b)
    down, along = (generator.synthesis(styles, "const") for styles in (styles_a, styles_b))
    rows = [torch.cat([torch.full_like(down[:1], -1), along])]
    for i, style in enumerate(styles_a):
        group = list(GROUPS.values())[i * len(GROUPS) // len(styles_a)]
        mixed = mix_styles(style.expand_as(styles_b), styles_b, group, skips=True)
        rows.append(torch.cat([down[i : i + 1], generator.synthesis(mixed, "const")]))
    return torch.cat(rows)


@torch.no_grad()
def noise_ablation(generator: Any, z: Tensor) -> Tensor:
    """Four rows of the same faces: noise in all layers, in none, in the fine ones, in the coarse ones (ibid.)."""
    return torch.cat(
        [generator(z, noise=Noise.ablation(s, boundary=NOISE_BOUNDARY, kind="const")) for s in NOISE_SETTINGS]
    )


@torch.no_grad()
def noise_deviation(generator: Any, z: Tensor, draws: int = 16) -> Tensor:
    """For the same four rows, where noise moves pixels: the standard deviation over draws, white at its largest."""
    rows = []
    for setting in NOISE_SETTINGS:
        noise = Noise.ablation(setting, boundary=NOISE_BOUNDARY)
        rows.append(torch.stack([generator(z, noise=noise) for _ in range(draws)]).std(0))
    maps = torch.cat(rows)
    return maps / maps.max().clamp_min(1e-12) * 2 - 1


def _train(training: Any, faces: Tensor, steps: int, seconds: float, label: str, console: Any) -> None:
    fit(training, faces, steps=steps, batch_size=BATCH, seconds=seconds, label=label, console=console)


def _latent(training: Any, count: int, seed: int = 1) -> Tensor:
    return training.model.sample_latent(count, generator=torch.Generator().manual_seed(seed))


def _faces() -> Tensor:
    """The faces and their mirror images."""
    faces, _ = orl_faces(size=SIZE)
    return torch.cat([faces, faces.flip(3)])


def _curves(title: str, training: Any, path: Path) -> Path:
    history = [{k: v for k, v in entry.items() if k != "resolution"} for entry in training.history]
    save_curves({title: history}, path)
    return path
