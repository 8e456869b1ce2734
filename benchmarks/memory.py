"""What ``gencore.memory`` brings: the same work under glibc as it comes, glibc tuned by its environment, and the cache.

    python -m benchmarks.memory [--case NAME ...] [--rounds N] [--json FILE] [--save]

An allocator belongs to a process, so each has a worker process of its own, and the workers are asked in turn, A B C A B
C ...; while one works the others wait. The result of every call is compared bit by bit before any time is reported: an
allocator must not change a number. ``--save`` writes the committed results and the table in docs/memory.md.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import gencore
from benchmarks import allocator
from benchmarks.machine import describe, slug, versions
from benchmarks.measure import pairwise_ratio, spread
from benchmarks.result import RESULTS, provenance
from gencore.train import GANTraining, VAETraining

DOCUMENT = Path(__file__).parents[1] / "docs" / "memory.md"
_SECTION = re.compile(r"(?<=<!-- allocators -->\n).*?(?=<!-- /allocators -->)", re.DOTALL)
_SHAPE = (64, 128, 32, 32)  # 32 MiB of float32
_SHORTEST_SAMPLE = 0.1
Call = Callable[[], Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=9, help="samples of each allocator (default 9)")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--save", action="store_true", help="keep them as the committed results, and write the table")
    parser.add_argument("--worker", choices=allocator.CHOICES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return work(args.worker)
    results = measure(args.case, args.rounds)
    print_table(results)
    path = RESULTS / "memory" / f"{slug(results['machine'])}.json" if args.save else args.json
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    if args.save:
        DOCUMENT.write_text(_SECTION.sub(lambda _: f"\n{markdown(results)}\n\n", DOCUMENT.read_text()))
    return 0


# The work.


def _small() -> Call:
    def call() -> Tensor:
        for _ in range(1000):
            x = torch.empty(64)
        return x.zero_()

    return call


def _fill_fresh() -> Call:
    return lambda: torch.empty(_SHAPE).fill_(1.0)[0, 0, 0]


def _fill_in_place() -> Call:
    x = torch.empty(_SHAPE)
    return lambda: x.fill_(1.0)[0, 0, 0]


def _batch_norm_leaky_relu() -> Call:
    layer = nn.Sequential(nn.BatchNorm2d(_SHAPE[1]), nn.LeakyReLU(0.2, inplace=True))
    x = torch.randn(_SHAPE).requires_grad_()

    def call() -> Tensor:
        x.grad = None
        layer(x).sum().backward()
        assert x.grad is not None
        return x.grad[0, 0, 0]

    return call


def _training_step(training: type, name: str, layers: str) -> Call:
    model = gencore.create_model(name, layers=layers)
    trained = training(model)
    images = torch.rand(64, model.config.channels, model.config.resolution, model.config.resolution) * 2 - 1
    return lambda: torch.tensor(list(trained.step(images).values()))


# Batch 64 everywhere: what the table says, and what prepares the call.
CASES: dict[str, tuple[str, Callable[[], Call]]] = {
    "small": ("1000 tensors of 256 bytes, one after another", _small),
    "fill": ("a fresh 32 MiB tensor, filled", _fill_fresh),
    "fill-in-place": ("the same tensor filled again and again", _fill_in_place),
    "batch-norm": ("BatchNorm2d + LeakyReLU, 64x128x32x32, forward and backward", _batch_norm_leaky_relu),
    "vae-32": ("VAE-32 training step, torch.nn", lambda: _training_step(VAETraining, "vae_32", "torch")),
    "dcgan-32": ("DCGAN-32 training step, torch.nn", lambda: _training_step(GANTraining, "dcgan_32", "torch")),
    "dcgan-32-gencore": ("the same, gencore.nn", lambda: _training_step(GANTraining, "dcgan_32", "gencore")),
    "dcgan-64": ("DCGAN-64 training step, torch.nn", lambda: _training_step(GANTraining, "dcgan_64", "torch")),
}


# A worker: one allocator, one case after another.


def work(name: str) -> int:
    """Serve the parent: a line with a case's name prepares it, an empty line takes a sample of it."""
    if name == "gencore":
        gencore.memory.enable()
    call: Call | None = None
    loops = 1
    for line in sys.stdin:
        if case := line.strip():
            call = None  # the last case's tensors go before the next one's come
            torch.manual_seed(0)
            call = CASES[case][1]()
            call()
            first = call()
            loops = max(1, min(100, round(_SHORTEST_SAMPLE / _seconds(call, 1))))
            answer: dict[str, Any] = {"check": first.tolist()}
        else:
            assert call is not None
            if loops > 1:
                call()  # brings this process's data back into the caches
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            seconds = _seconds(call, loops)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            answer = {"seconds": seconds, "faults": faults / loops}
        print(json.dumps(answer), flush=True)
    return 0


def _seconds(call: Call, loops: int) -> float:
    """The median time of a call: what else the machine does hits some calls of a sample, not all."""
    times = []
    for _ in range(loops):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# The parent.


def measure(cases: Sequence[str], rounds: int) -> dict[str, Any]:
    """Times of each case under each allocator, with the machine and the versions.

    Raises:
        RuntimeError: an allocator changed a result, or a worker ended early.
    """
    names = allocator.available()
    workers = {
        name: subprocess.Popen(
            [sys.executable, "-m", "benchmarks.memory", "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=allocator.environment(name),
        )
        for name in names
    }

    def ask(name: str, line: str) -> dict[str, Any]:
        worker = workers[name]
        assert worker.stdin is not None
        assert worker.stdout is not None
        time.sleep(0.02)  # until the threads of the one before have stopped spinning
        print(line, file=worker.stdin, flush=True)
        answer = worker.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker of allocator {name} ended with status {worker.wait()}")
        return json.loads(answer)

    rows = []
    try:
        for case in cases:
            checks = {name: ask(name, case)["check"] for name in names}
            if any(check != checks["stock"] for check in checks.values()):
                raise RuntimeError(f"{case}: the results differ between the allocators: {checks}")
            samples: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for _ in range(rounds):
                for name in names:
                    samples[name].append(ask(name, ""))
            rows.append(_row(case, rounds, samples))
    finally:
        for worker in workers.values():
            worker.stdin.close()  # type: ignore[union-attr]
            worker.wait()
    about = provenance(torch.get_num_threads())
    del about["allocator"]
    return {"machine": describe(), "versions": versions(), **about, "rows": rows}


def _row(case: str, rounds: int, samples: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    seconds = {name: [s["seconds"] for s in taken] for name, taken in samples.items()}
    row: dict[str, Any] = {"case": case, "what": CASES[case][0], "rounds": rounds}
    for name, taken in samples.items():
        row[f"{name}_ms"] = float(f"{1e3 * spread(seconds[name]).median:.4g}")
        row[f"{name}_faults"] = round(spread([s["faults"] for s in taken]).median)
        if name != "gencore" and "gencore" in seconds:
            ratio = pairwise_ratio(seconds[name], seconds["gencore"])
            row[f"{name}_over_gencore"] = [float(f"{x:.4g}") for x in (ratio.median, ratio.low, ratio.high)]
    return row


HEADER = ("", "stock glibc", "tuned glibc", "gencore.memory", "over stock", "over tuned", "page faults a call")


def _cells(row: dict[str, Any]) -> list[str]:
    def time_of(name: str) -> str:
        return f"{row[f'{name}_ms']:.3g} ms" if f"{name}_ms" in row else "not built"

    def faster_than(name: str) -> str:
        if f"{name}_over_gencore" not in row:
            return ""
        return "{:.2f}x ({:.2f} to {:.2f})".format(*row[f"{name}_over_gencore"])

    faults = " / ".join(f"{row[f'{name}_faults']:,}" for name in allocator.CHOICES if f"{name}_faults" in row)
    times = [time_of(name) for name in allocator.CHOICES]
    return [row["what"], *times, faster_than("stock"), faster_than("tuned"), faults]


def print_table(results: dict[str, Any]) -> None:
    """The results for a terminal."""
    table = Table(header_style="bold", pad_edge=False)
    for column in HEADER:
        table.add_column(column, justify="left" if not column else "right")
    for row in results["rows"]:
        table.add_row(*_cells(row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)
    console.print(table)
    console.print(_caption(results), highlight=False)


def markdown(results: dict[str, Any]) -> str:
    """The same for docs/memory.md."""
    lines = [HEADER, ["---"] * len(HEADER), *map(_cells, results["rows"])]
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in lines] + ["", _caption(results)])


def _caption(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['instruction_set']}; {results['threads']} "
        f"threads; torch {results['versions']['torch']}; commit {results['commit']}; {results['date']}. Batch 64, "
        "float32, contiguous. Each allocator in a process of its own, asked in turn; times are medians, the ratios "
        "medians of the pairwise ratios with their quartiles (above 1, gencore.memory is faster). All three gave the "
        "same bits."
    )


if __name__ == "__main__":
    sys.exit(main())
