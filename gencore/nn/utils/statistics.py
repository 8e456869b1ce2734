"""What batch norm normalises with outside of training: averages over many batches, or the batch at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def standing_statistics(model: nn.Module, draw: Callable[[], Any], *, passes: int = 16) -> None:
    """Replaces the running statistics of all batch norms by averages over fresh batches.

    A generator is then in evaluation mode what it was in training, whatever the weights (averaged ones, say) and the
    distribution of z (a truncated one): the running averages of the training belong to neither.

    Args:
        model: left in the mode in which it came, each layer with its momentum.
        draw: makes the arguments of one call of the model, a tensor or a tuple.
        passes: batches; the paper takes 100 for its best samples, 16 is enough to see.

    Raises:
        ValueError: ``passes`` below 1.

    Reference:
        Brock, Donahue and Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", 2019,
        appendix B ("standing statistics").
    """
    if passes < 1:
        raise ValueError(f"standing_statistics: passes must be at least 1, got {passes}")
    layers = _tracking_layers(model)
    momenta, modes = [layer.momentum for layer in layers], [m.training for m in model.modules()]
    try:
        model.train()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the cumulative average
        with torch.no_grad():
            for _ in range(passes):
                arguments = draw()
                model(*((arguments,) if isinstance(arguments, Tensor) else arguments))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block, batch norms normalise with the batch at hand even in evaluation, and remember nothing of it.

    pix2pix tests its generator so, with batches of one image. Isola et al., "Image-to-Image Translation with
    Conditional Adversarial Networks", 2017, section 3.3.
    """
    layers = _tracking_layers(model)
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer, (training, tracked) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, tracked


def _tracking_layers(model: nn.Module) -> list[Any]:
    return [
        m
        for m in model.modules()
        if isinstance(m, torch.nn.modules.batchnorm._NormBase)
        and not isinstance(m, torch.nn.modules.instancenorm._InstanceNorm)
        and m.track_running_stats
    ]
