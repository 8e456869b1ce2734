"""Training a GAN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gencore.losses import gan_loss
from gencore.models.dcgan import DCGAN


class GANTraining:
    """Alternating Adam: one step of the discriminator, then one of the generator, on the same noise.

    Args:
        model: a GAN; it is trained in place.
        loss: a key of :data:`gencore.losses.GAN_LOSSES`.
        learning_rate: of both networks (the paper's 2e-4).
        betas: Adam's (the paper's 0.5, and 0.999).
        ema: decay of the running average of the generator's weights that samples are drawn from.
        seed: of the noise.
    """

    def __init__(
        self,
        model: DCGAN,
        *,
        loss: str = "non_saturating",
        learning_rate: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        ema: float = 0.999,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.loss = gan_loss(loss)
        self.optimizer_g = torch.optim.Adam(model.generator.parameters(), lr=learning_rate, betas=betas)
        self.optimizer_d = torch.optim.Adam(model.discriminator.parameters(), lr=learning_rate, betas=betas)
        self.averaged = AveragedModel(model.generator, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True)
        self.generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        self.history: list[dict[str, float]] = []

    def step(self, images: Tensor) -> dict[str, float]:
        """One update of both networks on ``images`` ``[N, C, H, W]`` in [-1, 1].

        Returns:
            Both losses, the discriminator's accuracy on this batch before the update, and the standard deviation over
            the batch of the generated pixels (near 0: the generator has collapsed).
        """
        self.model.train()
        discriminator = self.model.discriminator
        fake = self.model(self.model.sample_latent(len(images), generator=self.generator))

        # Real and fake go through in batches of their own, so that batch norm's statistics do not mix.
        real_logits, fake_logits = discriminator(images), discriminator(fake.detach())
        loss_d = self.loss.discriminator(real_logits, fake_logits)
        self.optimizer_d.zero_grad(set_to_none=True)
        loss_d.backward()
        self.optimizer_d.step()

        discriminator.requires_grad_(False)  # the generator's step needs no gradient of the discriminator's weights
        loss_g = self.loss.generator(discriminator(fake))
        self.optimizer_g.zero_grad(set_to_none=True)
        loss_g.backward()
        self.optimizer_g.step()
        discriminator.requires_grad_(True)
        self.averaged.update_parameters(self.model.generator)

        accuracy = ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean()) / 2
        return {
            "loss_d": loss_d.item(),
            "loss_g": loss_g.item(),
            "accuracy_d": accuracy.item(),
            "diversity": fake.detach().std(0).mean().item(),
        }

    @torch.no_grad()
    def sample(self, z: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` in [-1, 1] from the averaged generator in evaluation mode."""
        return self.averaged.eval()(z)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "generator": self.generator.get_state(),
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        self.generator.set_state(state["generator"])
        self.history = list(state["history"])
