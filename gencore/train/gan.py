"""Training a GAN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gencore.losses import gan_loss, orthogonal_penalty
from gencore.ops._checks import check_classes, check_shape
from gencore.train.checkpoint import check_fits
from gencore.train.ema import WeightAverage


class GANTraining:
    """Alternating Adam: one step of the discriminator, then one of the generator, on the same noise.

    Args:
        model: a GAN such as :class:`~gencore.models.DCGAN` or :class:`~gencore.models.BigGAN`: ``generator``,
            ``discriminator``, ``sample_latent`` and, where it knows classes, ``num_classes`` and ``sample_classes``.
            Trained in place.
        loss: a key of :data:`gencore.losses.GAN_LOSSES`.
        learning_rate: of both networks (the paper's 2e-4).
        learning_rate_d: of the discriminator, where it differs (SAGAN: 1e-4 and 4e-4).
        betas: Adam's (DCGAN: 0.5 and 0.999; SNGAN and SAGAN: 0 and 0.9).
        generator_every: the generator takes a step once in so many (SNGAN: 5), the discriminator in each.
        accuracy_limit: the discriminator takes no step where its accuracy on the batch before was higher (3D-GAN: 0.8).
        orthogonal: weight of the generator's :func:`~gencore.losses.orthogonal_penalty` (BigGAN: 1e-4).
        ema: decay of the :class:`~gencore.train.ema.WeightAverage` of the generator that samples are drawn from.
        seed: of the noise.
    """

    def __init__(
        self,
        model: Any,
        *,
        loss: str = "non_saturating",
        learning_rate: float = 2e-4,
        learning_rate_d: float | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
        generator_every: int = 1,
        accuracy_limit: float = 1.0,
        orthogonal: float = 0.0,
        ema: float = 0.999,
        seed: int = 0,
    ) -> None:
        if generator_every < 1:
            raise ValueError(f"GANTraining: generator_every must be at least 1, got {generator_every}")
        self.model = model
        self.num_classes: int = getattr(model, "num_classes", 0)
        self.generator_every, self.orthogonal = generator_every, orthogonal
        self.accuracy_limit = accuracy_limit
        self.loss = gan_loss(loss)
        betas = float(betas[0]), float(betas[1])  # Adam takes no whole numbers
        self.optimizer_g = torch.optim.Adam(model.generator.parameters(), lr=learning_rate, betas=betas)
        rate_d = learning_rate if learning_rate_d is None else learning_rate_d
        self.optimizer_d = torch.optim.Adam(model.discriminator.parameters(), lr=rate_d, betas=betas)
        self.averaged = WeightAverage(model.generator, ema)
        self.generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        self.history: list[dict[str, float]] = []
        self._steps, self._loss_g, self._accuracy = 0, 0.0, 0.0

    def step(self, images: Tensor, classes: Tensor | None = None) -> dict[str, float]:
        """One update of both networks on ``images`` ``[N, C, H, W]`` in [-1, 1], of these ``classes`` ``[N]``.

        Returns:
            Both losses (the generator's of its latest step), the discriminator's accuracy on this batch before the
            update, and the standard deviation over the batch of the generated pixels (near 0: the generator has
            collapsed).

        Raises:
            ValueError: if a class-conditional model is given no classes, or any other model some.
            RuntimeError: if classes are not ``[N]``, or no integers.
            IndexError: if a class is out of range.
        """
        self._check(images, classes)
        self.model.train()
        discriminator = self.model.discriminator
        self._steps += 1
        moves = self._steps % self.generator_every == 0
        fake_classes: tuple[Tensor, ...] = ()
        if classes is not None:
            fake_classes = (self.model.sample_classes(len(images), generator=self.generator),)
        with torch.set_grad_enabled(moves):
            latent = self.model.sample_latent(len(images), generator=self.generator)
            fake = self.model(latent, *fake_classes)

        # Real and fake go through in batches of their own, so that batch norm's statistics do not mix.
        real_classes = () if classes is None else (classes,)
        real_logits = discriminator(images, *real_classes)
        fake_logits = discriminator(fake.detach(), *fake_classes)
        loss_d = self.loss.discriminator(real_logits, fake_logits)
        if self._accuracy <= self.accuracy_limit:
            self.optimizer_d.zero_grad(set_to_none=True)
            loss_d.backward()
            self.optimizer_d.step()

        self._accuracy = (((real_logits > 0).float().mean() + (fake_logits < 0).float().mean()) / 2).item()
        if moves:
            self._loss_g = self._generator_step(fake, fake_classes)
        return {
            "loss_d": loss_d.item(),
            "loss_g": self._loss_g,
            "accuracy_d": self._accuracy,
            "diversity": fake.detach().std(0).mean().item(),
        }

    def _check(self, images: Tensor, classes: Tensor | None) -> None:
        name = type(self.model).__name__
        if classes is None:
            if self.num_classes:
                raise ValueError(
                    f"GANTraining: this {name} is conditional on {self.num_classes} classes: step needs classes "
                    f"[{len(images)}], got None"
                )
            return
        if not self.num_classes:
            raise ValueError(
                f"GANTraining: this {name} knows no classes: classes must be None, got {tuple(classes.shape)}"
            )
        check_shape("GANTraining", "classes", classes, (len(images),))
        check_classes("GANTraining", "classes", classes, self.num_classes)

    def _generator_step(self, fake: Tensor, classes: tuple[Tensor, ...]) -> float:
        discriminator = self.model.discriminator
        discriminator.requires_grad_(False)  # the generator's step needs no gradient of the discriminator's weights
        loss = self.loss.generator(discriminator(fake, *classes))
        total = loss
        if self.orthogonal:
            total = loss + self.orthogonal * orthogonal_penalty(_convolutions(self.model.generator))
        self.optimizer_g.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer_g.step()
        discriminator.requires_grad_(True)
        self.averaged.update_parameters(self.model.generator)
        return loss.item()

    @torch.no_grad()
    def sample(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Images ``[N, C, H, W]`` in [-1, 1] from the averaged generator in evaluation mode."""
        return self.averaged.eval()(z, *(() if classes is None else (classes,)))

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "generator": self.generator.get_state(),
            "history": self.history,
            "steps": self._steps,
            "loss_g": self._loss_g,
            "accuracy": self._accuracy,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_fits(state, self.model, self.state_dict())
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        self.generator.set_state(state["generator"])
        self.history = list(state["history"])
        self._steps, self._loss_g, self._accuracy = state["steps"], state["loss_g"], state["accuracy"]


def _convolutions(network: nn.Module) -> list[Tensor]:
    """The weights that BigGAN regularises: all but embeddings; before spectral norm where there is one."""
    weights: list[Any] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            known: Any = getattr(module, "parametrizations", None)
            weights.append(module.weight if known is None else known.weight.original)
    return weights
