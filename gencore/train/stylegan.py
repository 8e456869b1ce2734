"""Training a StyleGAN or a StyleGAN2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gencore.losses import (
    logistic_discriminator,
    non_saturating_generator,
    path_length_penalty,
    path_lengths,
    r1_penalty,
)
from gencore.models.progan import Growing
from gencore.models.stylegan import StyleGAN
from gencore.models.stylegan2 import StyleGAN2
from gencore.models.styles import Noise
from gencore.train.growth import Growth
from gencore.train.lazy import lazy_adam
from gencore.train.progan import GrowingGANTraining, update


class StyleGANTraining(GrowingGANTraining):
    """The logistic loss, R1 on real images, path lengths, style mixing; the regularisers lazily.

    Args:
        model: a StyleGAN or a StyleGAN2; it is trained in place.
        growth: for a StyleGAN, from which number of images on it has which resolution; None: it stays at its stage.
        learning_rate: of both networks (0.002 for StyleGAN2 at 1024x1024, 0.0025 below).
        gamma: weight of R1 (0: none; 10; for a batch of n at resolution R, 0.0002 R^2 / n is a good guess).
        r1_every: steps of the discriminator between two of R1; 0: R1 in every step's loss.
        path_weight: of the path length penalty (2 for StyleGAN2); 0: none.
        path_every: steps of the generator between two of the path length penalty.
        path_shrink: how many times fewer images a path length step has.
        mixing: probability that a batch is drawn with styles of two z.
        ema_half_life: of the average that samples are drawn from, in images.
        seed: of the noise.

    Raises:
        ValueError: if the growth does not end at the model's resolution, the model cannot grow, ``mixing`` is not in
            [0, 1], or a number of steps is none.

    Reference:
        Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020, appendix B.
    """

    def __init__(
        self,
        model: StyleGAN | StyleGAN2,
        *,
        growth: Growth | None = None,
        learning_rate: float = 2.5e-3,
        gamma: float = 10.0,
        r1_every: int = 16,
        path_weight: float = 2.0,
        path_every: int = 4,
        path_shrink: int = 2,
        mixing: float = 0.9,
        ema_half_life: float = 10_000,
        seed: int = 0,
    ) -> None:
        if growth is not None and not isinstance(model, StyleGAN):
            raise ValueError(f"StyleGANTraining: a {type(model).__name__} does not grow")
        if not 0 <= mixing <= 1:
            raise ValueError(f"StyleGANTraining: mixing must be a probability, in [0, 1], got {mixing}")
        for name, value, least in (
            ("r1_every", r1_every, 0),
            ("path_every", path_every, 0),
            ("path_shrink", path_shrink, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"StyleGANTraining: {name} must be a whole number of at least {least}, got {value!r}")
        super().__init__(model, ema_half_life=ema_half_life, growth=growth, seed=seed)
        self.gamma, self.r1_every = gamma, r1_every if gamma else 0
        self.path_weight, self.path_every, self.path_shrink = path_weight, path_every if path_weight else 0, path_shrink
        self.mixing = mixing
        self.path_mean = torch.zeros([], device=self.generator.device)
        self.optimizer_g = lazy_adam(model.generator.parameters(), learning_rate=learning_rate, every=self.path_every)
        self.optimizer_d = lazy_adam(model.discriminator.parameters(), learning_rate=learning_rate, every=self.r1_every)
        self.steps = 0
        self.last_r1 = self.last_path = 0.0

    def step(self, images: Tensor) -> dict[str, float]:
        """One update of both networks on ``images`` ``[N, C, H, W]`` in [-1, 1], of the model's full resolution.

        Returns:
            Both losses, the discriminator's accuracy on this batch before the update, and the latest R1 (the mean
            squared gradient) and path length.
        """
        images = self.begin(images)
        metrics = self.adversarial_step(images)
        if self.r1_every and self.steps % self.r1_every == 0:
            self.r1_step(images)
        if self.path_every and self.steps % self.path_every == 0:
            self.path_step(max(len(images) // self.path_shrink, 1))
        self.steps += 1
        self.end(len(images))
        return metrics | {"r1": self.last_r1, "path_length": self.last_path}

    def adversarial_step(self, images: Tensor) -> dict[str, float]:
        """One step of the discriminator, with R1 where that is not lazy, then one of the generator on the same z."""
        discriminator = self.model.discriminator
        fake, _ = self._generate(len(images))
        real_logits, fake_logits = discriminator(images), discriminator(fake.detach())
        loss_d = logistic_discriminator(real_logits, fake_logits)
        update(self.optimizer_d, loss_d if self.r1_every or not self.gamma else loss_d + self._r1(images))

        discriminator.requires_grad_(False)  # the generator's step needs no gradient of the discriminator's weights
        loss_g = non_saturating_generator(discriminator(fake))
        update(self.optimizer_g, loss_g)
        discriminator.requires_grad_(True)
        accuracy = ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean()) / 2
        return {"loss_d": loss_d.item(), "loss_g": loss_g.item(), "accuracy_d": accuracy.item()}

    def r1_step(self, images: Tensor) -> None:
        """A step of the discriminator's regulariser alone."""
        update(self.optimizer_d, self._r1(images) * self.r1_every)

    def path_step(self, count: int) -> None:
        """A step of the generator's regulariser alone, on ``count`` new images."""
        fake, styles = self._generate(count)
        lengths = path_lengths(fake, styles, generator=self.generator)
        penalty, self.path_mean = path_length_penalty(lengths, self.path_mean)
        update(self.optimizer_g, self.path_weight * penalty * self.path_every)
        self.last_path = lengths.detach().mean().item()

    def _r1(self, images: Tensor) -> Tensor:
        penalty = r1_penalty(self.model.discriminator, images)
        self.last_r1 = penalty.item()
        return self.gamma / 2 * penalty

    def _generate(self, count: int) -> tuple[Tensor, Tensor]:
        """Images, and the styles that they were drawn from: of one z, or from some layer on of another."""
        mapping, synthesis = self.model.generator.mapping, self.model.generator.synthesis
        styles = mapping(self.model.sample_latent(count, generator=self.generator))
        layers = styles.shape[1]
        if isinstance(synthesis, Growing):
            layers = 2 * len(synthesis.in_use())
        draw = torch.rand([], generator=self.generator, device=self.generator.device)
        crossover = torch.randint(1, max(layers, 2), [], generator=self.generator, device=self.generator.device)
        if draw < self.mixing:
            others = mapping(self.model.sample_latent(count, generator=self.generator))
            styles = torch.cat([styles[:, :crossover], others[:, crossover:]], dim=1)
        return synthesis(styles, Noise(generator=self.generator)), styles

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "path_mean": self.path_mean,
            "steps": self.steps,
            "last": [self.last_r1, self.last_path],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.path_mean = state["path_mean"].to(self.generator.device)
        self.steps = state["steps"]
        self.last_r1, self.last_path = state["last"]
