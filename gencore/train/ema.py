"""The running average of a generator's weights that samples are drawn from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import gencore.functional as F
from gencore.models.progan import Growing


class WeightAverage(AveragedModel):
    """Exponential moving average with one decay, of weights and of batch norm's statistics, as ``.module``.

    Singular vectors of spectral norm are not averaged, which would shorten them and so let the weights grow: they
    follow the averaged weights, by one step of the power method an update.

    Args:
        model: its weights at the first update are the average's first value.
        decay: the weight that the average keeps in an update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def update_parameters(self, model: nn.Module) -> None:
        with _singular_vectors_follow(self.module):
            super().update_parameters(model)


class EMA:
    r"""Exponential moving average with a half-life counted in images, so that it does not hang on the batch size.

    After a batch of n images the average moves by ``average <- model + beta (average - model)``, with
    ``beta = 0.5 ** (n / half-life)``. Early on the half-life is ``ramp_up`` times the images seen so far, lest the
    random weights of the start stay in the average. Buffers are copied, and growing networks grow; singular vectors of
    spectral norm follow the averaged weights, as in :class:`WeightAverage`.

    Args:
        model: its weights at this moment are the average's first value.
        half_life: in images (10,000 in StyleGAN2).
        ramp_up: share of the images seen so far that bounds the half-life; None for no bound.

    Raises:
        ValueError: if ``half_life`` or ``ramp_up`` is not positive.

    Reference:
        Karras et al., "Training Generative Adversarial Networks with Limited Data", 2020, appendix C.
    """

    def __init__(self, model: nn.Module, *, half_life: float = 10_000, ramp_up: float | None = 0.05) -> None:
        if not half_life > 0 or (ramp_up is not None and not ramp_up > 0):
            raise ValueError(f"EMA: half_life and ramp_up must be positive, got {half_life} and {ramp_up}")
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.half_life, self.ramp_up = half_life, ramp_up

    def beta(self, batch: int, seen: int) -> float:
        """The weight that the average so far keeps, after ``batch`` more images, the last of them number ``seen``."""
        half_life = self.half_life if self.ramp_up is None else min(self.half_life, seen * self.ramp_up)
        return 0.5 ** (batch / half_life) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, model: nn.Module, *, batch: int, seen: int) -> None:
        """Take in the weights of ``model`` after a step on ``batch`` images, ``seen`` images in all."""
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(model.parameters())
        with _singular_vectors_follow(self.module):
            torch._foreach_lerp_(averages, weights, 1 - self.beta(batch, seen))
            for average, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
                average.copy_(buffer)
        for own, network in zip(self.module.modules(), model.modules(), strict=True):
            if isinstance(own, Growing) and isinstance(network, Growing):
                own.grow(*network.now())


@contextmanager
def _singular_vectors_follow(average: nn.Module) -> Iterator[None]:
    """While an average takes weights and buffers in: its own u and v go on by one step of the power method."""
    lists: list[Any] = [m for m in average.modules() if isinstance(m, ParametrizationList) and hasattr(m[0], "_u")]
    before = [(layer[0]._u.clone(), layer[0]._v.clone()) for layer in lists]
    yield
    with torch.no_grad():
        for layer, (u, v) in zip(lists, before, strict=True):
            norm = layer[0]  # gencore's or PyTorch's
            norm._u.copy_(u), norm._v.copy_(v)
            F.spectral_norm(layer.original, norm._u, norm._v, dim=norm.dim, eps=norm.eps, v_first=False)
