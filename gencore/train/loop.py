"""The training loop: a progress bar, the history of the metrics, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gencore.ops._checks import check_classes
from gencore.optional import require
from gencore.train.batches import Data, batches
from gencore.train.checkpoint import load_checkpoint, save_checkpoint


class Training(Protocol):
    """What :func:`fit` needs: a step, the metrics of the steps done so far, and a state that holds everything.

    A training of a class-conditional model says so by ``num_classes``; its step takes images and classes.

    Attributes:
        generator: of the noise; its device is the one that batches are moved to.
    """

    history: list[dict[str, float]]
    generator: torch.Generator

    @property
    def step(self) -> Callable[..., dict[str, float]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def fit(
    training: Training,
    data: Data,
    *,
    steps: int,
    batch_size: int = 64,
    seconds: float = float("inf"),
    seed: int = 0,
    label: str = "training",
    console: Any = None,
    checkpoint: str | Path | None = None,
    every: int = 1000,
) -> None:
    """Train until ``steps`` steps are done in all, or the time is up.

    Args:
        training: a :class:`VAETraining` or :class:`GANTraining`; its ``history`` grows by one entry a step.
        data: images ``[N, C, H, W]`` in [-1, 1]; or a tuple of them and their classes ``[N]``, integers; or a
            ``torch.utils.data.Dataset`` of such images or pairs: at least one batch. Each epoch is a new shuffle, and
            the rest that does not fill a batch is left out. Or an iterable of whole batches of either, such as a
            ``torch.utils.data.DataLoader``, which is gone through again and again. Models without classes are not
            given any.
        steps: counted from the very first; a training that was loaded from a checkpoint goes on where it stopped, with
            the same batches as if it had never been interrupted (an iterable starts afresh).
        batch_size: images a step; an iterable has its own.
        seconds: the time limit of this call.
        seed: of the shuffles; an iterable has its own.
        label: shown beside the progress bar.
        console: a ``rich.console.Console`` for the progress bar; a new one if None.
        checkpoint: a file to continue from where it exists, and to write every ``every`` steps and at the end.
        every: steps between two checkpoints.

    Raises:
        ValueError: if there are fewer images than one batch, an iterable has no more batches, or a class-conditional
            model is given no classes.
        TypeError: if the data are none of these.
        IndexError: if a class is out of range.
        FloatingPointError: if a loss is not finite.
        gencore.optional.MissingPackage: if rich is not installed.
    """
    if checkpoint is not None and Path(checkpoint).exists():
        load_checkpoint(training, checkpoint)
    deadline = time.monotonic() + seconds
    done = len(training.history)
    with _progress(console) as progress:
        task = progress.add_task(label, total=steps, completed=done, metrics="")
        for images, classes in batches(data, batch_size, seed, start=done, stop=steps):
            metrics = _step(training, images, classes)
            bad = [name for name, value in metrics.items() if value != value or abs(value) == float("inf")]
            if bad:
                raise FloatingPointError(f"fit: {', '.join(bad)} is not finite at step {len(training.history)}")
            training.history.append(metrics)
            text = "  ".join(f"{name} {value:.3g}" for name, value in metrics.items())
            progress.update(task, advance=1, metrics=text)
            if checkpoint is not None and len(training.history) % every == 0:
                save_checkpoint(training, checkpoint)
            if time.monotonic() > deadline:
                break
    if checkpoint is not None:
        save_checkpoint(training, checkpoint)


def _step(training: Training, images: Tensor, classes: Tensor | None) -> dict[str, float]:
    device, num_classes = training.generator.device, getattr(training, "num_classes", 0)
    if not num_classes:
        return training.step(images.to(device))
    if classes is None:
        raise ValueError(
            f"fit: the model is conditional on {num_classes} classes: data must be (images, classes), or give such "
            "batches; got images alone"
        )
    check_classes("fit", "classes", classes, num_classes)  # before they go where looking at them would cost time
    return training.step(images.to(device), classes.to(device))


def _progress(console: Any) -> Any:
    rich = require("rich.progress", extra="bench", purpose="the progress bar")
    return rich.Progress(
        rich.TextColumn("{task.description:<22}"),
        rich.BarColumn(bar_width=24),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("[dim]{task.fields[metrics]}"),
        console=console,
        refresh_per_second=4,
    )
