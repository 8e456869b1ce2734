"""Faces freed of noise by a RED-Net, with its skip connections and without them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gencore.apps.pictures import save_curves
from gencore.apps.tools import caching, grid
from gencore.data import orl_faces
from gencore.models import create_model
from gencore.train import RestorationTraining, fit, gaussian_noise

SIZE = 32
SIGMA = 50.0  # in grey levels, the most that the paper has
UNSEEN = 16
SMALL: dict[str, Any] = {"width": 32}
BATCH = 16


def red_net(out: Path, *, seconds: float, steps: int | None, console: Any) -> list[Path]:
    """Half the time with skips, half without: noisy, restored and clean faces of people never seen, and the PSNR."""
    faces, _ = orl_faces(size=SIZE)  # ten photographs of each of forty people, one after the other
    train, unseen = faces[:-80], faces[-80:][:: 80 // UNSEEN]
    pictures: list[Path] = []
    histories: dict[str, Sequence[dict[str, float]]] = {}
    for name, skips in (("with", True), ("without", False)):
        torch.manual_seed(0)
        model = create_model("red_net_20", **SMALL, skips=skips)
        training = RestorationTraining(model, gaussian_noise(SIGMA), learning_rate=1e-3)
        label = f"RED-Net {name} skips"
        limits: dict[str, Any] = {"steps": steps or 10**9, "seconds": seconds / 2}
        with caching():
            fit(training, train, batch_size=BATCH, label=label, console=console, **limits)
        pictures.append(grid(restored(model, unseen), out / f"red_net_{name}_skips.png", columns=UNSEEN))
        histories[label] = [{"psnr": entry["psnr"]} for entry in training.history]
    save_curves(histories, out / "red_net_psnr.png")
    return [*pictures, out / "red_net_psnr.png"]


@torch.no_grad()
def restored(model: Any, clean: Tensor) -> Tensor:
    """Noisy images, then restored ones, then clean ones: ``[3 N, C, H, W]``."""
    noisy = gaussian_noise(SIGMA)(clean, torch.Generator().manual_seed(1))
    return torch.cat([noisy, model.eval()(noisy), clean])
