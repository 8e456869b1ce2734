"""Training a network that restores images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gencore.train.checkpoint import check_fits


class RestorationTraining:
    """Adam on the mean squared error between the restored and the clean image.

    Args:
        model: images to images of the same shape; it is trained in place.
        corrupt: takes clean images and a generator, gives corrupted ones; :func:`gaussian_noise` for instance.
        learning_rate: Adam's.
        data_range: from the darkest to the brightest value, for the PSNR: 2 for images in [-1, 1], 1 for [0, 1].
        seed: of the corruption.

    Reference:
        Mao, Shen and Yang, 2016, section 3.3; Chen et al., 2017, equation 6.
    """

    def __init__(
        self,
        model: nn.Module,
        corrupt: Callable[[Tensor, torch.Generator], Tensor],
        *,
        learning_rate: float = 1e-4,
        data_range: float = 2.0,
        seed: int = 0,
    ) -> None:
        self.model, self.corrupt, self.data_range = model, corrupt, data_range
        self.optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        self.generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        self.history: list[dict[str, float]] = []

    def step(self, images: Tensor) -> dict[str, float]:
        """One update on clean ``images`` ``[N, C, H, W]``; the loss, and the PSNR in dB."""
        self.model.train()
        restored = self.model(self.corrupt(images, self.generator))
        loss = nn.functional.mse_loss(restored, images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item(), "psnr": psnr(restored.detach(), images, self.data_range)}

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_fits(state, self.model, self.state_dict())
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.history = list(state["history"])


def gaussian_noise(sigma: float, data_range: float = 2.0) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Adds normal noise; ``sigma`` counts grey levels, of which there are 255 in ``data_range``."""

    def corrupt(images: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.empty_like(images).normal_(0, sigma * data_range / 255, generator=generator)
        return images + noise

    return corrupt


def psnr(restored: Tensor, clean: Tensor, data_range: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * torch.log10(data_range**2 / nn.functional.mse_loss(restored.double(), clean.double())))
