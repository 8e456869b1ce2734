"""Runs cases: parity first, then ours and every peer in turn on the same tensors."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.case import Case, Cost, Inputs, Maker, Outputs, Problem, all_cases, as_tuple
from benchmarks.machine import measure_peaks
from benchmarks.measure import pairwise_ratio, peak_bytes, spread, time_in_turn
from benchmarks.parity import Gate, Verdict, compute, using_dtype
from benchmarks.result import Result, judge, provenance
from gencore import UnsupportedImplementation
from gencore.dispatch import OPS

Call = Callable[[], Any]
Function = Callable[[Inputs], Outputs]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How long and what: see the command line's help. ``impls=("all",)``: every implementation that an op has."""

    impls: tuple[str, ...] = ("auto",)
    dtypes: tuple[str, ...] = ("float32",)
    layouts: tuple[str, ...] | None = None
    modes: tuple[str, ...] | None = None
    device: str = "cpu"
    quick: bool = False
    compiled: bool = True
    seconds: float = 3.0
    rounds: int = 9


QUICK = Settings(quick=True, compiled=False, seconds=0.5, rounds=7)


def run(
    ops: Sequence[str] | None = None,
    *,
    settings: Settings | None = None,
    quick: bool = False,
    threads: int | None = None,
    progress: Progress = lambda text: None,
    **changes: Any,
) -> list[Result]:
    """Time ops against PyTorch, in this process and with the allocator that it has.

    Args:
        ops: names, as the modules of :mod:`benchmarks.cases`; all if None.
        settings: how; by default those of the full run, or with ``quick`` a selection of sizes, plain eager peers and
            half a second a row.
        threads: number of threads for all sides; what torch is set to if None.
        progress: called with one line before each comparison.
        changes: single fields of :class:`Settings`.

    Returns:
        One :class:`Result` for each implementation and peer.

    Raises:
        ValueError: there is no such case.
    """
    cases = all_cases()
    if unknown := sorted(set(ops or ()) - set(cases)):
        raise ValueError(f"there is no benchmark case {', '.join(unknown)}; there are {', '.join(cases)}")
    settings = replace(settings or (QUICK if quick else Settings()), **changes)
    results: list[Result] = []
    with using_threads(threads):
        for case in (cases[name] for name in ops or cases):
            results += run_case(case, settings, progress)
    return results


def run_case(case: Case, settings: Settings, progress: Progress = lambda text: None) -> list[Result]:
    """All rows of one case."""
    results: list[Result] = []
    peaks = measure_peaks(settings.device)
    for problem in case.problems:
        if settings.quick and not problem.quick:
            continue
        modes = [m for m in problem.modes or case.modes if settings.modes is None or m in settings.modes]
        layouts = [x for x in problem.layouts or case.layouts if settings.layouts is None or x in settings.layouts]
        for layout, dtype in itertools.product(layouts, settings.dtypes):
            progress(f"{case.op}  {problem.name}  {layout}  {dtype}")
            torch.compiler.reset()
            with using_dtype(dtype) as torch_dtype:
                rows = run_problem(case, problem, modes, layout, torch_dtype, settings)
            results += [replace(row, dtype=dtype) for row in rows]
    peaks = peaks.best_of(measure_peaks(settings.device))
    return [judge(result, peaks) for result in results]


def run_problem(
    case: Case,
    problem: Problem,
    modes: Sequence[str],
    layout: str,
    dtype: torch.dtype,
    settings: Settings,
) -> list[Result]:
    """The rows of one problem in one layout and dtype: every mode, implementation and peer."""
    if not modes:
        return []
    make = Maker(dtype, torch.device(settings.device), layout, torch.Generator().manual_seed(0))
    inputs = case.inputs(problem, make)
    impls = tuple(OPS[case.op].implementations) if settings.impls == ("all",) else settings.impls
    entered = contenders(
        case, problem, inputs, Gate(case, problem, inputs, modes, layout), impls=impls, compiled=settings.compiled
    )
    results = []
    for mode in modes:
        base = Result(
            kind="op",
            op=case.op,
            problem=problem.name,
            mode=mode,
            dtype=str(dtype).removeprefix("torch."),
            layout=layout,
            device=settings.device,
            impl="",
            peer="",
            **provenance(torch.get_num_threads()),
        )
        results += [replace(base, impl=name, status=why) for name, why in entered.refused_ours.items()]
        results += [
            replace(base, impl=n, peer=p, status=w) for n in entered.ours for p, w in entered.refused_peers.items()
        ]
        # Compiled regions cannot be differentiated twice.
        fair = {n: f for n, f in entered.peers.items() if not (mode == "double backward" and n.startswith("compile"))}
        rows = compare(
            base,
            {n: entered.call(f, mode) for n, f in entered.ours.items()},
            {n: entered.call(f, mode) for n, f in fair.items()},
            case.cost(problem, mode, dtype.itemsize),
            settings,
        )
        ran = implementations(case, problem, inputs, impls, mode)
        verdicts = entered.verdicts
        results += [
            replace(r, impl=ran[r.impl], error=verdicts[r.impl].error, allowed=verdicts[r.impl].allowed) for r in rows
        ]
    return results


def implementations(case: Case, problem: Problem, inputs: Inputs, impls: Sequence[str], mode: str) -> dict[str, str]:
    """What runs in ``mode`` by what runs where no gradients are recorded: ``auto`` may choose something else then."""
    recorded = mode != "forward"
    leaves = {n: x.detach().requires_grad_(recorded and n in case.differentiable) for n, x in inputs.items()}
    return {case.resolve(problem, inputs, i): case.resolve(problem, leaves, i) for i in impls}


def compare(
    base: Result, ours: Mapping[str, Call], peers: Mapping[str, Call], cost: Cost, settings: Settings
) -> list[Result]:
    """Time all calls in turn; one row for each of ours beside each peer."""
    if not ours or not peers:
        return []
    calls = {f"ours {n}": c for n, c in ours.items()} | {f"peer {n}": c for n, c in peers.items()}
    broken = {name: why for name, call in calls.items() if (why := _failure(call))}
    working = {name: call for name, call in calls.items() if name not in broken}
    times = time_in_turn(working, seconds=settings.seconds, rounds=settings.rounds, device=settings.device)
    memory = {name: peak_bytes(call, settings.device) for name, call in working.items()}
    rows = []
    for impl, peer in itertools.product(ours, peers):
        a, b = f"ours {impl}", f"peer {peer}"
        row = replace(base, impl=impl, peer=peer, flops=cost.flops, bytes=cost.bytes)
        if a in broken or b in broken:
            rows.append(replace(row, status=broken.get(a) or broken[b]))
            continue
        seconds, peer_seconds, ratio = (
            spread(times[a]).median,
            spread(times[b]).median,
            pairwise_ratio(times[b], times[a]),
        )
        rows.append(
            replace(
                row,
                ours_ms=seconds * 1e3,
                peer_ms=peer_seconds * 1e3,
                ratio=ratio.median,
                ratio_low=ratio.low,
                ratio_high=ratio.high,
                rounds=len(times[a]),
                gflops=cost.flops / seconds / 1e9,
                gbs=cost.bytes / seconds / 1e9,
                peak_bytes=memory[a],
                peer_peak_bytes=memory[b],
            )
        )
    return rows


@dataclass
class Field:
    """Who takes part: what runs and is right, by name; and why the others are not in it."""

    case: Case
    inputs: Inputs
    gate: Gate
    ours: dict[str, Function] = field(default_factory=dict)
    peers: dict[str, Function] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    refused_ours: dict[str, str] = field(default_factory=dict)
    refused_peers: dict[str, str] = field(default_factory=dict)

    def call(self, function: Function, mode: str) -> Call:
        """One call of ``function`` in ``mode``, as it is timed."""
        return lambda: compute(function, self.inputs, self.case.differentiable, mode, self.gate.cotangents)


def contenders(
    case: Case, problem: Problem, inputs: Inputs, gate: Gate, *, impls: Sequence[str], compiled: bool
) -> Field:
    """Sends each implementation of ours and each peer through the gate."""
    found = Field(case, inputs, gate)
    for impl in impls:
        name = case.resolve(problem, inputs, impl)

        def ours(x: Inputs, impl: str = impl) -> Outputs:
            return case.ours(problem, x, impl)

        try:
            verdict = gate.ours(ours)
        except UnsupportedImplementation as error:
            found.refused_ours[name] = f"unsupported: {error}"
            continue
        except Exception as error:  # ours has to run: what raises is as wrong as what miscomputes
            found.refused_ours[name] = f"wrong: {_first_line(error)}"
            continue
        if verdict.passed:
            found.ours[name], found.verdicts[name] = ours, verdict
        else:
            found.refused_ours[name] = f"wrong: {verdict}"

    def eager(x: Inputs) -> Outputs:
        return as_tuple(case.eager(problem, x))

    peers: dict[str, Function] = {"eager": eager, **case.peers(problem)}
    if compiled:
        peers["compile"] = torch.compile(eager, dynamic=False)
    for name, function in peers.items():
        try:
            verdict = gate.peer(function)
        except Exception as error:  # a peer that cannot run here is a row that says so
            found.refused_peers[name] = _first_line(error)
            continue
        if verdict.passed:
            found.peers[name] = function
        else:
            found.refused_peers[name] = f"computes something else: {verdict}"
    return found


def _failure(call: Call) -> str:
    """Why ``call`` does not run; empty if it does. The first run also compiles what is compiled."""
    try:
        call()
    except Exception as error:
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


@contextmanager
def using_threads(threads: int | None) -> Iterator[None]:
    """Within the block torch uses this many threads; what it printed about compiling is kept quiet."""
    before = torch.get_num_threads()
    dynamo_level = logging.getLogger("torch._dynamo").level
    if threads is not None:
        torch.set_num_threads(threads)
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch")
            yield
    finally:
        logging.getLogger("torch._dynamo").setLevel(dynamo_level)
        torch.set_num_threads(before)
