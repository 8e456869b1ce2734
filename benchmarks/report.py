"""The same rows for the terminal and for Markdown: one place decides what a cell says."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.result import Report, Result

LEAST_WORK = (
    "the least possible work takes; of a convolution, the products of its direct sums (minimal filtering needs fewer)."
)
COLUMNS = ("op", "size", "mode", "layout", "impl", "time", "peer", "its time", "faster", "rate", "of limit", "memory")


def print_report(report: Report, console: Console | None = None) -> None:
    """A table of all rows, with the machine and its measured limits below."""
    console = console or Console()
    shown = [i for i, column in enumerate(COLUMNS) if console.width >= 150 or column not in ("rate", "memory")]
    table = Table(header_style="bold", pad_edge=False)
    for column in (COLUMNS[i] for i in shown):
        table.add_column(column, justify="right" if column in ("time", "its time", "faster", "rate") else "left")
    previous: tuple[str, ...] = ()
    for result in report.results:
        group = (result.op, result.problem, result.mode, result.layout, result.dtype)
        row = list(cells(result))
        row[8] = f"[{colour(result)}]{row[8]}[/]"
        if group == previous:
            row[:4] = [""] * 4
        table.add_row(*(row[i] for i in shown))
        previous = group
    console.print(table)
    console.print(caption(report), highlight=False)


def markdown(report: Report, results: Sequence[Result]) -> str:
    """The rows as a Markdown table, and a line that says where they were measured."""
    dropped = {"op"} if len({r.op for r in results}) == 1 else set()
    keep = [i for i, column in enumerate(COLUMNS) if column not in dropped]
    lines = ["| " + " | ".join(COLUMNS[i] for i in keep) + " |", "|" + " --- |" * len(keep)]
    for result in results:
        row = cells(result)
        lines.append("| " + " | ".join(row[i].replace("|", "\\|") for i in keep) + " |")
    return "\n".join([*lines, "", caption(report, results)])


def summary(report: Report, results: Sequence[Result]) -> str:
    """A shorter Markdown table: one row a size and mode, one column a peer."""
    peers = list(dict.fromkeys(r.peer for r in results if r.ratio is not None))
    groups: dict[tuple[str, ...], dict[str, Result]] = {}
    for r in results:
        groups.setdefault((r.op, r.problem, r.mode, r.layout, r.dtype, r.impl), {})[r.peer] = r
    header = ["", "size", "mode", "layout", "time", *(f"vs {peer}" for peer in peers), "of limit"]
    lines = [header, ["---"] * len(header)]
    for (op, problem, mode, layout, dtype, _), row in groups.items():
        timed = next((r for r in row.values() if r.ratio is not None), None)
        first = [op, problem, mode, layout if dtype == "float32" else f"{layout}, {dtype}"]
        if timed is None:
            lines.append([*first, next(iter(row.values())).status, *[""] * (len(peers) + 1)])
            continue
        ratios = [f"{ratio(row[p].ratio)}x" if p in row and row[p].ratio is not None else "" for p in peers]
        lines.append([*first, milliseconds(timed.ours_ms), *ratios, f"{percent(timed.share)} ({timed.limit})"])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    how = (
        "Ours and the peers run in turn on the same tensors. `time` is ours, the median; `vs` a peer the median of the "
        "pairwise ratios, above 1 where ours is faster; `of limit` the part of the measured peak that "
        f"{LEAST_WORK}"
    )
    return f"{table}\n\n{_where(report, results)} {how}"


def cells(result: Result) -> tuple[str, ...]:
    """One row of the table, in the order of :data:`COLUMNS`."""
    dtype = "" if result.dtype == "float32" else f", {result.dtype}"
    what = (result.op, result.problem, result.mode, result.layout + dtype, result.impl)
    if result.ratio is None:
        return (*what, "", result.peer, "", result.status, "", "", "")
    return (
        *what,
        milliseconds(result.ours_ms),
        result.peer,
        milliseconds(result.peer_ms),
        f"{ratio(result.ratio)}x ({ratio(result.ratio_low)} to {ratio(result.ratio_high)})",
        f"{result.gflops:.0f} GFLOP/s" if result.limit == "compute" else f"{result.gbs:.3g} GB/s",
        f"{percent(result.share)} (peer {percent(result.peer_share)}), {result.limit}",
        f"{mebibytes(result.peak_bytes)} / {mebibytes(result.peer_peak_bytes)}",
    )


def caption(report: Report, results: Sequence[Result] | None = None) -> str:
    """Where and how the rows were measured."""
    return (
        f"{_where(report, report.results if results is None else results)} Ours and the peers run in turn on the same "
        "tensors; times are medians, `faster` is the median of the pairwise ratios with its quartiles, `memory` the "
        "most MiB that tensors made during a call hold at once (ours / peer), `of limit` the part of the measured peak "
        f"that {LEAST_WORK}"
    )


def _where(report: Report, rows: Sequence[Result]) -> str:
    machine, peaks = report.machine, report.peaks
    low, high = peaks.copy_gbs[0], peaks.copy_gbs[-1]
    fastest = max(peaks.copy_gbs, key=lambda point: point[1])
    device = machine.get("gpu") or f"{machine['processor']}, {machine['cores']} cores, {machine['instruction_set']}"
    return (
        f"{device}; {_several(str(r.threads) for r in rows)} threads; allocator {_several(r.allocator for r in rows)}; "
        f"torch {report.versions['torch']}; commit {_several(r.commit for r in rows)}; "
        f"{_several(r.date for r in rows)}. "
        f"Measured peaks: {peaks.gflops['float32']:.0f} GFLOP/s in float32; copying "
        f"{low[1]:.0f} GB/s over {_size(low[0])}, {fastest[1]:.0f} over {_size(fastest[0])}, {high[1]:.0f} over "
        f"{_size(high[0])}."
    )


def colour(result: Result) -> str:
    if result.ratio is None:
        return "red"
    return "green" if result.ratio_low > 1 else "yellow" if result.ratio_high >= 1 else "red"


def milliseconds(value: float) -> str:
    return f"{value * 1e3:.3g} µs" if value < 0.1 else f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


def ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def percent(value: float) -> str:
    return f"{100 * value:.0f}%" if value >= 0.1 else f"{100 * value:.1f}%"


def mebibytes(value: int | None) -> str:
    if value is None:
        return "?"
    return f"{value / 2**20:.0f}" if value >= 100 * 2**20 else f"{value / 2**20:.3g}"


def _size(value: int) -> str:
    return f"{value / 2**20:g} MiB"


def _several(values: object) -> str:
    return ", ".join(sorted(set(values)))  # type: ignore[call-overload]
