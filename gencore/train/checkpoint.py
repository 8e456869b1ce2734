"""Checkpoints: weights, optimisers, averages, noise generators and the history of the metrics, in one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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
        RuntimeError: if the weights do not fit the model; all keys that do not are listed, and nothing is loaded.
    """
    content = torch.load(path, weights_only=True, map_location="cpu")
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind != type(training).__name__:
        raise ValueError(f"load_checkpoint: {path} holds a {kind}, wanted a {type(training).__name__}")
    training.load_state_dict(content["state"])


def check_fits(state: Mapping[str, Any], model: nn.Module, own: Mapping[str, Any]) -> None:
    """To be called before anything of a training's ``state`` is loaded, so that it is loaded as a whole or not at all.

    Args:
        model: what is trained; its configuration is in the message.
        own: the training's own state.

    Raises:
        RuntimeError: what the state has is not what the training has: parts, and weights by their keys and shapes.
    """
    problems = _differences("", own, state)
    if problems:
        config = getattr(model, "config", None)
        name = f"{type(model).__name__}{f' of {config}' if config else ''}"
        listed = "\n  ".join(problems)
        raise RuntimeError(
            f"load_state_dict: the state does not fit a training of a {name}; nothing is loaded:\n  {listed}"
        )


def _differences(where: str, own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Keys that only one of them has, and tensors of different shapes; in ``state_dict`` s of modules too."""
    problems = []
    for key, value in own.items():
        if key not in state:
            problems.append(f"{where}{key} is missing{_shape(value)}")
        elif isinstance(value, Tensor) and getattr(state[key], "shape", None) != value.shape:
            problems.append(f"{where}{key} must be {tuple(value.shape)}, got{_shape(state[key]) or ' no Tensor'}")
        elif key in ("model", "averaged"):
            problems += _differences(f"{key}: ", value, state[key])
    return problems + [f"{where}{key}{_shape(value)} is left over" for key, value in state.items() if key not in own]


def _shape(value: Any) -> str:
    return f" {tuple(value.shape)}" if isinstance(value, Tensor) else ""
