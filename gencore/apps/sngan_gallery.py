"""Digits drawn by an SNGAN, and by the same networks without spectral norm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gencore.apps.pictures import beside_nearest, save_curves
from gencore.apps.tools import caching, grid
from gencore.data import mnist5k
from gencore.models import create_model
from gencore.train import GANTraining, fit

# Narrow networks: in a few minutes on a CPU, many small steps draw better digits than few large ones.
SMALL: dict[str, Any] = {"channels": 1, "generator": (64,) * 4, "discriminator": (48,) * 4}
BATCH = 32


def sngan(out: Path, *, seconds: float, steps: int | None, console: Any) -> list[Path]:
    """Half the time with spectral norm, half without: samples of both, the digits nearest to them, and the losses.

    Both have the hinge loss and Adam with the paper's betas, from the same seed.
    """
    digits, _ = mnist5k(size=32)
    pictures: list[Path] = []
    histories: dict[str, Sequence[dict[str, float]]] = {}
    for name, normed in (("with", True), ("without", False)):
        torch.manual_seed(0)
        model = create_model("sngan_32", **SMALL, spectral_norm=normed)
        training = GANTraining(model, loss="hinge", betas=(0.0, 0.9), ema=0.99)
        label = f"SNGAN {name} spectral norm"
        with caching():
            limits: dict[str, Any] = {"steps": steps or 10**9, "seconds": seconds / 2}
            fit(training, digits, batch_size=BATCH, label=label, console=console, **limits)
        samples = _samples(training, 64)
        pictures.append(grid(samples, out / f"sngan_{name}_spectral_norm.png", columns=16))
        pictures.append(grid(beside_nearest(samples[:32], digits), out / f"sngan_{name}_neighbours.png", columns=16))
        histories[label] = training.history
    save_curves(histories, out / "sngan_losses.png")
    return [*pictures, out / "sngan_losses.png"]


def _samples(training: GANTraining, count: int) -> Tensor:
    return training.sample(training.model.sample_latent(count, generator=torch.Generator().manual_seed(1)))
