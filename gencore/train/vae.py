"""Training a VAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gencore.losses import bernoulli_nll, elbo_loss
from gencore.models.vae import VAE
from gencore.train.checkpoint import check_fits


class VAETraining:
    """Adam on the negative evidence lower bound.

    Args:
        model: a VAE; it is trained in place.
        learning_rate: Adam's.
        beta: weight of the KL term (1: the bound itself).
        reconstruction: weight of the other term; 0 to see what the KL term does alone.
        seed: of the noise.
    """

    def __init__(
        self,
        model: VAE,
        *,
        learning_rate: float = 1e-3,
        beta: float = 1.0,
        reconstruction: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.beta, self.reconstruction = beta, reconstruction
        self.optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        self.generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        self.history: list[dict[str, float]] = []

    def step(self, images: Tensor) -> dict[str, float]:
        """One update on ``images`` ``[N, C, H, W]`` in [-1, 1]; the terms of the loss in nats an image."""
        self.model.train()
        target = (images + 1) / 2
        logits, kl = self.model(target, generator=self.generator)
        nll = bernoulli_nll(logits, target)
        loss = elbo_loss(self.reconstruction * nll, kl, beta=self.beta)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item(), "reconstruction": nll.mean().item(), "kl": kl.mean().item()}

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> dict[str, float]:
        """The same terms on unseen images, with z at its mean."""
        self.model.eval()
        target = (images + 1) / 2
        logits, kl = self.model(target)
        nll = bernoulli_nll(logits, target)
        return {
            "loss": elbo_loss(self.reconstruction * nll, kl, beta=self.beta).item(),
            "reconstruction": nll.mean().item(),
            "kl": kl.mean().item(),
        }

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
