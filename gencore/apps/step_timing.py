"""Training steps through gencore and through torch.nn, in turn: same weights, same batch, same allocator and layout."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from gencore import memory
from gencore.losses import bernoulli_nll, elbo_loss, logistic_discriminator, non_saturating_generator
from gencore.models import create_model
from gencore.models.dcgan import DCGAN
from gencore.models.vae import VAE
from gencore.train import GANTraining, VAETraining

#: The largest relative difference of any weight's gradient (in the 2-norm) that still counts as equal in float32.
GRADIENT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class StepTiming:
    """A comparison of two ways to take one training step.

    Attributes:
        what: the model and the batch.
        ours, other: what is compared.
        ours_per_second, other_per_second: steps a second, from the median times.
        ratio: how many times faster ours is: the median of the ratios taken round by round; ``low`` and ``high`` are
            the quartiles.
        rounds: how many there were.
        gradient_difference: see :func:`gradient_difference`; None where both sides are the same code.
    """

    what: str
    ours: str
    other: str
    ours_per_second: float
    other_per_second: float
    ratio: float
    low: float
    high: float
    rounds: int
    gradient_difference: float | None


def compare_with_torch(name: str, images: Tensor, *, seconds: float, rounds: int = 7, **options: Any) -> StepTiming:
    """Time the training step of model ``name`` on gencore's layers beside torch.nn's.

    Args:
        name: for :func:`gencore.create_model`, with ``options``.
        images: one batch, ``[N, C, H, W]`` in [-1, 1]; its memory format is what both sides run in.
        seconds, rounds: the least of both.

    Raises:
        ArithmeticError: if the two sides' gradients differ: a wrong step gets no time.
    """
    measure = _measure()
    own, plain = twins(name, images, **options)
    difference = gradient_difference(own, plain, images)
    if difference > GRADIENT_TOLERANCE:
        raise ArithmeticError(f"{name}: gencore's gradients differ from torch.nn's by {difference:.1e}, relatively")
    ours, other = training_of(own), training_of(plain)
    times = measure.time_in_turn(
        {"ours": lambda: ours.step(images), "other": lambda: other.step(images)}, seconds=seconds, rounds=rounds
    )
    return _timing(f"{name}, batch {len(images)}", "gencore", "torch.nn", times, difference)


def compare_allocators(name: str, images: Tensor, *, rounds: int = 7, steps: int = 3, **options: Any) -> StepTiming:
    """Time gencore's training step with and without :mod:`gencore.memory`, in turn.

    Each sample is ``steps`` steps, after one that warms up the allocator it is to run with. Call it while
    :mod:`gencore.memory` is not enabled.
    """
    training = training_of(twins(name, images, **options)[0])
    contexts: dict[str, Callable[[], Any]] = {"ours": memory.caching, "other": nullcontext}
    times: dict[str, list[float]] = {label: [] for label in contexts}
    for round_number in range(rounds + 1):
        for label, context in contexts.items():
            with context():
                training.step(images)
                start = time.perf_counter()
                for _ in range(steps):
                    training.step(images)
                if round_number:  # the first round warms up everything else
                    times[label].append((time.perf_counter() - start) / steps)
    return _timing(f"{name}, batch {len(images)}", "gencore.memory", "the system's allocator", times, None)


def twins(name: str, images: Tensor, **options: Any) -> tuple[Any, Any]:
    """The model on gencore's layers and on torch.nn's, with the same weights, in the memory format of ``images``."""
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    own = create_model(name, **options).to(memory_format=layout)
    plain = create_model(name, layers="torch", **options).to(memory_format=layout)
    plain.load_state_dict(own.state_dict())
    return own, plain


def training_of(model: nn.Module) -> GANTraining | VAETraining:
    """The training that fits the model's kind."""
    if isinstance(model, DCGAN):
        return GANTraining(model)
    if isinstance(model, VAE):
        return VAETraining(model)
    raise TypeError(f"training_of: model must be a DCGAN or a VAE, got {type(model).__name__}")


def gradient_difference(own: nn.Module, plain: nn.Module, images: Tensor) -> float:
    """The largest of the weights' ``||a - b|| / ||b||``, with a and b the gradients of one loss through either model.

    The models are left as they are. A VAE's code is taken at its mean, since the two sides draw their noise from
    different generators.
    """
    gradients = [_gradients(copy.deepcopy(model), images) for model in (own, plain)]
    return max(((a - b).norm() / b.norm().clamp_min(1e-12)).item() for a, b in zip(*gradients, strict=True))


def _gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    if isinstance(model, DCGAN):
        fake = model(model.sample_latent(len(images), generator=torch.Generator().manual_seed(0)))
        logits = model.discriminator(fake)
        loss = logistic_discriminator(model.discriminator(images), logits) + non_saturating_generator(logits)
    else:
        target = (images + 1) / 2
        logits, kl = model.eval()(target)
        loss = elbo_loss(bernoulli_nll(logits, target), kl)
    return torch.autograd.grad(loss, list(model.parameters()))


def _timing(
    what: str, ours: str, other: str, times: dict[str, list[float]], gradient_difference: float | None
) -> StepTiming:
    measure = _measure()
    ratio = measure.pairwise_ratio(times["other"], times["ours"])
    return StepTiming(
        what=what,
        ours=ours,
        other=other,
        ours_per_second=1 / measure.spread(times["ours"]).median,
        other_per_second=1 / measure.spread(times["other"]).median,
        ratio=ratio.median,
        low=ratio.low,
        high=ratio.high,
        rounds=len(times["ours"]),
        gradient_difference=gradient_difference,
    )


def _measure() -> Any:
    # In a checkout; an installed gencore has no benchmarks, and does not come here.
    return import_module("benchmarks.measure")
