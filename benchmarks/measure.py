"""Times several calls in turn, and the memory that one call takes."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.machine import synchronizer

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler announces itself otherwise
_SHORTEST_SAMPLE = 1e-2
_MOST_ROUNDS = 200


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    low: float
    high: float


def time_in_turn(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float,
    rounds: int = 7,
    warmups: int = 3,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds a call of each, measured A B C A B C ..., so that whatever the machine does meets all of them alike.

    Args:
        seconds: stop after the round that passes this; ``rounds`` are made in any case.
        warmups: calls of each before anything counts; the last of them sets how many calls make one sample, so that
            a sample lasts about ten milliseconds. Shorter ones would time what the one before left behind: other data
            in the caches, and threads that have gone to sleep. One call before each such sample does not count.

    Returns:
        For each name the times, one a round: the i-th entries of all were taken within the same round.
    """
    wait = synchronizer(device)

    def sample(call: Callable[[], Any], loops: int) -> float:
        if loops > 1:
            call()
        wait()
        start = clock()
        for _ in range(loops):
            call()
        wait()
        return (clock() - start) / loops

    loops = {}
    for name, call in calls.items():
        once = [sample(call, 1) for _ in range(max(warmups, 1))][-1]
        loops[name] = max(1, min(5000, round(_SHORTEST_SAMPLE / max(once, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = clock()
        while len(next(iter(times.values()))) < rounds or (
            clock() - start < seconds and len(next(iter(times.values()))) < _MOST_ROUNDS
        ):
            for name, call in calls.items():
                times[name].append(sample(call, loops[name]))
    finally:
        if collecting:
            gc.enable()
    return times


def spread(values: list[float]) -> Spread:
    """Median and quartiles."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def pairwise_ratio(peer: list[float], ours: list[float]) -> Spread:
    """How many times faster ours is than the peer: the ratio is taken round by round, then its median."""
    return spread([p / o for p, o in zip(peer, ours, strict=True)])


def peak_bytes(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """The most bytes that tensors made during one call held at the same time; its inputs do not count.

    On the CPU this is what torch's allocator reports to the profiler (a kernel's own scratch is not among it), on a
    GPU what the caching allocator reports.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        result = call()
    del result
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most if events else None
