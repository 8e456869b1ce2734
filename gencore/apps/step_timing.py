"""Whole training steps, timed: gencore's layers beside torch.nn's, and with the caching allocator beside without."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from gencore import memory
from gencore.train import Training


@dataclass(frozen=True)
class StepTiming:
    """A comparison of two ways to take one training step.

    Attributes:
        what: the model and the batch.
        ours, other: what is compared.
        ours_per_second, other_per_second: steps a second, from the median times.
        ratio: how many times faster ours is: the median of the ratios taken round by round; ``low`` and ``high`` are
            the quartiles.
        parity: how far our gradients are from those in float64, and how far they may be.
        status: ``"ok"``, or why there is no time.
    """

    what: str
    ours: str
    other: str
    ours_per_second: float = float("nan")
    other_per_second: float = float("nan")
    ratio: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    parity: str = ""
    status: str = "ok"


def compare_with_torch(
    models: Sequence[tuple[str, dict[str, Any]]], *, batch: int, seconds: float, rounds: int
) -> list[StepTiming]:
    """Time the training steps of models on gencore's layers beside torch.nn's, all in channels_last.

    The gradients are checked first, against those in float64: a wrong step gets no time.

    Args:
        models: names and options for :func:`gencore.create_model`.
        batch: images a step.
        seconds, rounds: how long each comparison is repeated, at least.
    """
    bench, runner = _benchmarks("models"), _benchmarks("runner")
    settings = runner.Settings(
        layouts=("channels_last",), modes=("training step",), compiled=False, seconds=seconds, rounds=rounds
    )
    torch.manual_seed(0)  # the same weights in every run, so that parity is not a matter of luck at a ReLU's kink
    cases = [bench.ModelCase(name, batch, options=options) for name, options in models]
    rows = bench.run_models(cases=cases, settings=settings)
    return [_timing(row, batch) for row in rows]


def compare_allocators(what: str, training: Training, images: Tensor, *, rounds: int, steps: int = 3) -> StepTiming:
    """Time a training's step with and without :mod:`gencore.memory`, in turn.

    Each sample is ``steps`` steps, after one that warms up the allocator it is to run with. Call it while
    :mod:`gencore.memory` is not enabled.
    """
    measure = _benchmarks("measure")
    contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {"ours": memory.caching, "other": nullcontext}
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
    ratio = measure.pairwise_ratio(times["other"], times["ours"])
    return StepTiming(
        what=f"{what}, batch {len(images)}",
        ours="gencore.memory",
        other="the system's allocator",
        ours_per_second=1 / measure.spread(times["ours"]).median,
        other_per_second=1 / measure.spread(times["other"]).median,
        ratio=ratio.median,
        low=ratio.low,
        high=ratio.high,
        parity="the same code",
    )


def _timing(row: Any, batch: int) -> StepTiming:
    what, other = f"{row.op}, batch {batch}", f"torch.nn, {row.peer}"
    if row.ratio is None:
        return StepTiming(what, "gencore", other, status=row.status)
    return StepTiming(
        what=what,
        ours=f"gencore, {row.layout}",
        other=other,
        ours_per_second=1e3 / row.ours_ms,
        other_per_second=1e3 / row.peer_ms,
        ratio=row.ratio,
        low=row.ratio_low,
        high=row.ratio_high,
        parity=f"{row.error:.0e} (allowed {row.allowed:.0e})",
    )


def _benchmarks(module: str) -> Any:
    # They are part of a checkout; an installed gencore has none, and does not come here.
    return import_module(f"benchmarks.{module}")
