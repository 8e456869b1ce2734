"""Training a ProGAN, and what it has in common with training a StyleGAN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gencore.losses import drift_penalty, gradient_penalty, wasserstein_discriminator, wasserstein_generator
from gencore.models.progan import Growing, ProGAN
from gencore.train.checkpoint import check_fits
from gencore.train.ema import EMA
from gencore.train.growth import Growth, match
from gencore.train.lazy import lazy_adam


class GrowingGANTraining:
    """Two optimisers, an average of the generator, a plan of growth and a count of the images seen.

    A model that grows keeps its optimisers: the state of the layers that it had goes on, that of new ones begins.
    """

    model: Any
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer

    def __init__(self, model: nn.Module, *, ema_half_life: float, growth: Growth | None, seed: int) -> None:
        self.model: Any = model
        if growth is not None and growth.top != self.model.config.resolution:
            raise ValueError(
                f"{type(self).__name__}: growth must end at the model's resolution {self.model.config.resolution}, "
                f"got {growth.top}"
            )
        self.growth = growth
        self.averaged = EMA(self.model.generator, half_life=ema_half_life)
        self.generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        self.seen = 0
        self.history: list[dict[str, float]] = []

    def begin(self, images: Tensor) -> Tensor:
        """Grow as planned; the images at the model's stage.

        Raises:
            RuntimeError: the images are not of the model's full resolution.
        """
        full = self.model.config.resolution
        if images.dim() != 4 or images.shape[2:] != (full, full):
            raise RuntimeError(
                f"{type(self).__name__}: images must have shape [N, C, {full}, {full}], got {tuple(images.shape)}"
            )
        self.model.train()
        if self.growth is not None:
            self.model.grow(*self.growth.at(self.seen))
        if isinstance(self.model.discriminator, Growing):
            images = match(images, *self.model.discriminator.now())
        return images

    def end(self, batch: int) -> None:
        """Count the images, and take the generator's weights into the average."""
        self.seen += batch
        self.averaged.update(self.model.generator, batch=batch, seen=self.seen)

    @torch.no_grad()
    def sample(self, z: Tensor, **options: Any) -> Tensor:
        """Images from the averaged generator in evaluation mode, at the present resolution."""
        return self.averaged.module(z, **options)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.module.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "generator": self.generator.get_state(),
            "seen": self.seen,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_fits(state, self.model, self.state_dict())
        self.model.load_state_dict(state["model"])
        self.averaged.module.load_state_dict(state["averaged"])
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        self.generator.set_state(state["generator"])
        self.seen = state["seen"]
        self.history = list(state["history"])


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of ``loss``. Weights out of its reach keep no gradient, so Adam leaves them alone."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


class ProGANTraining(GrowingGANTraining):
    """WGAN-GP with drift: one step of the critic, then one of the generator, on the same noise.

    Args:
        model: a ProGAN; it is trained in place.
        growth: from which number of images on it has which resolution; None: it stays at its stage.
        learning_rate: of both networks.
        penalty: weight of the gradient penalty.
        drift: weight of the drift penalty.
        ema_half_life: of the average that samples are drawn from, in images.
        seed: of the noise.

    Raises:
        ValueError: if the growth does not end at the model's resolution.

    Reference:
        Karras et al., "Progressive Growing of GANs", 2018, appendix A.1. (They start Adam anew at each resolution.)
    """

    def __init__(
        self,
        model: ProGAN,
        *,
        growth: Growth | None = None,
        learning_rate: float = 1e-3,
        penalty: float = 10.0,
        drift: float = 1e-3,
        ema_half_life: float = 10_000,
        seed: int = 0,
    ) -> None:
        super().__init__(model, ema_half_life=ema_half_life, growth=growth, seed=seed)
        self.penalty, self.drift = penalty, drift
        self.optimizer_g = lazy_adam(model.generator.parameters(), learning_rate=learning_rate)
        self.optimizer_d = lazy_adam(model.discriminator.parameters(), learning_rate=learning_rate)

    def step(self, images: Tensor) -> dict[str, float]:
        """One update of both networks on ``images`` ``[N, C, H, W]`` in [-1, 1], of the model's full resolution.

        Returns:
            The Wasserstein estimate, the gradient penalty, the generator's loss and the present resolution.
        """
        images = self.begin(images)
        critic = self.model.discriminator
        fake = self.model(self.model.sample_latent(len(images), generator=self.generator))

        real_values, fake_values = critic(images), critic(fake.detach())
        loss_d = wasserstein_discriminator(real_values, fake_values)
        penalty = gradient_penalty(critic, images, fake, generator=self.generator)
        update(self.optimizer_d, loss_d + self.penalty * penalty + self.drift * drift_penalty(real_values))

        critic.requires_grad_(False)  # the generator's step needs no gradient of the critic's weights
        loss_g = wasserstein_generator(critic(fake))
        update(self.optimizer_g, loss_g)
        critic.requires_grad_(True)
        self.end(len(images))
        return {
            "distance": -loss_d.item(),
            "penalty": penalty.item(),
            "loss_g": loss_g.item(),
            "resolution": float(images.shape[-1]),
        }
