"""Digits drawn by a BigGAN: by class, between classes, truncated, and where its attention looks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gencore.apps.pictures import beside_nearest, save_curves
from gencore.apps.tools import caching, grid
from gencore.data import mnist5k
from gencore.models import create_model
from gencore.nn.utils.statistics import standing_statistics
from gencore.train import GANTraining, fit

# A narrow network with all that BigGAN has: shared class embedding, z in chunks, attention.
SMALL: dict[str, Any] = {
    "resolution": 32,
    "channels": 1,
    "classes": 10,
    "width": 16,
    "generator": (4, 4, 4, 4),
    "discriminator": (2, 4, 4, 4),
    "halvings": 2,
    "shared": 16,
    "chunk": 8,
    "attention": 16,
}
BATCH = 32
THRESHOLDS = (0.2, 0.5, 1.0, 2.0)


def biggan(out: Path, *, seconds: float, steps: int | None, console: Any) -> list[Path]:
    """Every class, from one class to the next, thresholds of truncation, attention, and the nearest digits."""
    torch.manual_seed(0)
    digits, labels = mnist5k(size=32)
    model = create_model("biggan_128", **SMALL)
    training = GANTraining(model, loss="hinge", learning_rate=1e-3, betas=(0.0, 0.999), orthogonal=1e-4, ema=0.99)
    limits: dict[str, Any] = {"steps": steps or 10**9, "seconds": seconds}
    with caching():
        fit(training, (digits, labels), batch_size=BATCH, label="BigGAN", console=console, **limits)
    generator = training.averaged.module.eval()
    samples = by_class(model, generator, columns=16)
    save_curves({"BigGAN": training.history}, out / "biggan_losses.png")
    return [
        grid(samples, out / "biggan_classes.png", columns=16),
        grid(between_classes(model, generator, columns=16), out / "biggan_between_classes.png", columns=16),
        grid(truncations(model, generator), out / "biggan_truncation.png", columns=20),
        grid(attention(model, generator, count=8), out / "biggan_attention.png", columns=8),
        grid(beside_nearest(samples[::5], digits), out / "biggan_neighbours.png", columns=16),
        out / "biggan_losses.png",
    ]


@torch.no_grad()
def by_class(model: Any, generator: Any, *, columns: int, threshold: float | None = None) -> Tensor:
    """A row for every class, with the same z in every row: ``[classes * columns, C, H, W]``."""
    z = model.sample_latent(columns, truncation=threshold, generator=torch.Generator().manual_seed(1))
    return generator(z.repeat(model.num_classes, 1), torch.arange(model.num_classes).repeat_interleave(columns))


@torch.no_grad()
def between_classes(model: Any, generator: Any, *, columns: int) -> Tensor:
    """In each row one z, while the class embedding goes straight from one class to the next."""
    embedded = generator.embed(torch.arange(model.num_classes))
    weights = torch.linspace(0, 1, columns)[:, None]
    walks = torch.cat([torch.lerp(a, b, weights) for a, b in pairwise(embedded)])
    z = model.sample_latent(1, generator=torch.Generator().manual_seed(2))
    return generator(z.expand(len(walks), -1), walks)


def truncations(model: Any, generator: Any) -> Tensor:
    """Two of every class in a row, for each of :data:`THRESHOLDS`: from fidelity to variety.

    Brock et al. 2019, figure 2. Batch norm's statistics are gathered anew for each threshold.
    """
    rows = []
    kept = {name: buffer.clone() for name, buffer in generator.named_buffers()}
    for threshold in THRESHOLDS:

        def inputs(threshold: float = threshold) -> tuple[Tensor, Tensor]:
            return model.sample_latent(32, truncation=threshold), model.sample_classes(32)

        standing_statistics(generator, inputs, passes=8)
        rows.append(by_class(model, generator, columns=2, threshold=threshold))
    generator.load_state_dict(kept, strict=False)
    return torch.cat(rows)


@torch.no_grad()
def attention(model: Any, generator: Any, *, count: int) -> Tensor:
    """Samples, each above the maps of where four of its points look: centre, top, bottom and left.

    Zhang et al. 2019, figure 1.
    """
    (resolution, layer), *_ = generator.attention.items()
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    z = model.sample_latent(count, generator=torch.Generator().manual_seed(3))
    images = generator(z, torch.arange(count) % model.num_classes)
    handle.remove()
    half = int(resolution) // 2
    points = torch.tensor([[half, half], [half // 2, half], [half + half // 2, half], [half, half // 2]])
    maps = layer.attention_maps(seen[0], points)
    maps = maps / maps.amax((2, 3), keepdim=True) * 2 - 1
    maps = F.interpolate(maps, size=images.shape[2:]).transpose(0, 1)[:, :, None]
    return torch.cat([images[None], maps.expand(-1, -1, images.shape[1], -1, -1)]).flatten(0, 1)
