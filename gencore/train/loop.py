"""The training loop: batches, a progress bar, the history of the metrics, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gencore.optional import require
from gencore.train.checkpoint import load_checkpoint, save_checkpoint


class Training(Protocol):
    """What :func:`fit` needs: a step, the metrics of the steps done so far, and a state that holds everything."""

    history: list[dict[str, float]]

    def step(self, images: Tensor) -> dict[str, float]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def fit(
    training: Training,
    images: Tensor,
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
        images: ``[N, C, H, W]`` in [-1, 1], at least one batch of them; each epoch is a new shuffle, and the rest that
            does not fill a batch is left out.
        steps: counted from the very first; a training that was loaded from a checkpoint goes on where it stopped, with
            the same batches as if it had never been interrupted.
        batch_size: images a step.
        seconds: the time limit of this call.
        seed: of the shuffles.
        label: shown beside the progress bar.
        console: a ``rich.console.Console`` for the progress bar; a new one if None.
        checkpoint: a file to continue from where it exists, and to write every ``every`` steps and at the end.
        every: steps between two checkpoints.

    Raises:
        ValueError: if there are fewer images than one batch.
        FloatingPointError: if a loss is not finite.
        gencore.optional.MissingPackage: if rich is not installed.
    """
    if not 0 < batch_size <= len(images):
        raise ValueError(f"fit: batch_size must be in 1..{len(images)} (the number of images), got {batch_size}")
    if checkpoint is not None and Path(checkpoint).exists():
        load_checkpoint(training, checkpoint)
    deadline = time.monotonic() + seconds
    done = len(training.history)
    with _progress(console) as progress:
        task = progress.add_task(label, total=steps, completed=done, metrics="")
        for batch in _batches(images, batch_size, seed, start=done, stop=steps):
            metrics = training.step(batch)
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


def _batches(images: Tensor, batch_size: int, seed: int, start: int, stop: int) -> Iterator[Tensor]:
    """Batches number ``start`` to ``stop - 1``; which images are in a batch depends on nothing but its number."""
    per_epoch = len(images) // batch_size
    order, epoch = torch.empty(0), -1
    for number in range(start, stop):
        if number // per_epoch != epoch:
            epoch = number // per_epoch
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        first = number % per_epoch * batch_size
        yield images[order[first : first + batch_size].to(images.device)]


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
