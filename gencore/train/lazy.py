"""Regularisers that run only now and then, and the optimiser that allows for it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def lazy_adam(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.0, 0.99),
    every: int = 0,
    eps: float = 1e-8,
) -> torch.optim.Adam:
    r"""Adam for a network whose regulariser has a step of its own after each ``every`` steps of the main loss.

    There are then ``every + 1`` updates in the time of ``every``. With ``c = every / (every + 1)``, the learning rate
    becomes ``c * learning_rate`` and each beta ``beta ** c``, so that weights and averages move as far per image as
    with the regulariser in every step. Its gradient must be weighted by ``every``.

    Args:
        parameters: the network's.
        learning_rate, betas, eps: Adam's, as they would be without lazy regularisation.
        every: steps from one regularisation to the next; 0 if the regulariser is part of every step's loss (or there is
            none).

    Raises:
        ValueError: if ``every`` is negative.

    Reference:
        Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020, appendix B, "Lazy regularization".
    """
    if every < 0:
        raise ValueError(f"lazy_adam: every must not be negative, got {every}")
    c = every / (every + 1) if every else 1.0
    return torch.optim.Adam(parameters, lr=c * learning_rate, betas=(betas[0] ** c, betas[1] ** c), eps=eps)
