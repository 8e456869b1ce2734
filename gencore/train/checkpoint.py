"""Checkpoints: weights, optimisers, averages, noise generators and the history of the metrics, in one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gencore.train.loop import Training


def save_checkpoint(training: Training, path: str | Path) -> None:
    """Write everything that the training needs to go on; the file is replaced only once the new one is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save({"kind": type(training).__name__, "state": training.state_dict()}, partial)
    os.replace(partial, path)


def load_checkpoint(training: Training, path: str | Path) -> None:
    """Load what :func:`save_checkpoint` wrote. Only tensors and plain values are read: no code in the file can run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it was written by another kind of training.
        RuntimeError: if the weights do not fit the model.
    """
    content = torch.load(path, weights_only=True, map_location="cpu")
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind != type(training).__name__:
        raise ValueError(f"load_checkpoint: {path} holds a {kind}, wanted a {type(training).__name__}")
    training.load_state_dict(content["state"])
