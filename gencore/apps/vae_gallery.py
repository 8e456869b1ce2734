"""What each term of a VAE's loss does: two latent numbers of every digit, with reconstruction alone, KL alone, both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gencore.apps.pictures import reconstructions, save_curves, save_scatter, vae_samples
from gencore.apps.tools import caching, grid
from gencore.data import mnist5k, split
from gencore.models import create_model
from gencore.train import VAETraining, fit

# Weights of the two terms of the loss.
TERMS: dict[str, dict[str, Any]] = {
    "reconstruction": {"beta": 0.0},
    "kl": {"reconstruction": 0.0},
    "both": {},
}
BATCH = 32


def vae(out: Path, *, seconds: float, steps: int | None, console: Any) -> list[Path]:
    """For each of :data:`TERMS`: the codes of unseen digits by class, what the prior gives, and reconstructions.

    Without the divergence codes lie far apart, with gaps that decode to nothing; with it alone they are the prior, and
    say nothing; with both they fill the prior, neighbours alike.
    """
    (train, _), (test, labels) = split(*mnist5k())
    pictures: list[Path] = []
    codes: dict[str, Tensor] = {}
    histories: dict[str, Sequence[dict[str, float]]] = {}
    for name, weights in TERMS.items():
        torch.manual_seed(0)
        training = VAETraining(create_model("vae_32_latent2"), **weights)
        limits: dict[str, Any] = {"steps": steps or 10**9, "seconds": seconds / len(TERMS)}
        with caching():
            fit(training, train, batch_size=BATCH, label=f"VAE, {name}", console=console, **limits)
        codes[name] = drawn_codes(training.model, test)
        histories[f"VAE, {name} (nats an image)"] = training.history
        samples = vae_samples(training.model, 32, seed=0)
        drawn = torch.cat([samples, reconstructions(training.model, test[:16])])
        pictures.append(grid(drawn, out / f"vae_{name}.png", columns=16))
    save_scatter(codes, labels, out / "vae_codes.png")
    save_curves(histories, out / "vae_losses.png")
    return [*pictures, out / "vae_codes.png", out / "vae_losses.png"]


@torch.no_grad()
def drawn_codes(model: Any, images: Tensor) -> Tensor:
    """z drawn from q(z | x), ``[N, latent]``, for images in [-1, 1]."""
    mu, logvar = model.eval().encode((images + 1) / 2)
    noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0), dtype=mu.dtype)
    return mu + noise * (logvar / 2).exp()
