"""One row of a report, the report, and its JSON and CSV."""

from __future__ import annotations

import csv
import datetime
import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import allocator
from benchmarks.machine import Peaks, describe, measure_peaks, slug, versions

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """Ours beside one peer, timed in turn. Times are medians in milliseconds.

    Attributes:
        ratio: median of the pairwise ratios peer / ours; above 1 ours is faster. ``ratio_low`` and ``ratio_high`` are
            the quartiles.
        gflops, gbs: what ours reached, counting the least operations and bytes.
        limit: ``"compute"`` or ``"memory"``: which of the machine's measured peaks bounds the call.
        share, peer_share: the part of that limit that ours and the peer reach.
        peak_bytes, peer_peak_bytes: the most that tensors made during a call held at once.
        error, allowed: parity with the float64 oracle, relative to the largest value.
        status: ``"ok"``, or why there is no time.
    """

    kind: str
    op: str
    problem: str
    mode: str
    dtype: str
    layout: str
    device: str
    impl: str
    peer: str
    status: str = "ok"
    ours_ms: float | None = None
    peer_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    rounds: int = 0
    flops: float | None = None
    bytes: float | None = None
    gflops: float | None = None
    gbs: float | None = None
    limit: str | None = None
    share: float | None = None
    peer_share: float | None = None
    peak_bytes: int | None = None
    peer_peak_bytes: int | None = None
    error: float | None = None
    allowed: float | None = None
    threads: int = 0
    allocator: str = ""
    commit: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What a row is about: two rows with the same key are two measurements of one thing."""
        return (
            self.kind,
            self.op,
            self.problem,
            self.mode,
            self.dtype,
            self.layout,
            self.device,
            self.impl,
            self.peer,
            self.allocator,
            str(self.threads),
        )


@dataclass
class Report:
    """Results with the machine and the versions that they were measured with."""

    machine: dict[str, Any]
    versions: dict[str, str]
    peaks: Peaks
    results: list[Result] = field(default_factory=list)

    @classmethod
    def of(cls, results: Sequence[Result], device: str = "cpu", threads: int | None = None) -> Report:
        peaks = measure_peaks(device, threads)
        return cls(describe(device), versions(), peaks, [judge(r, peaks) for r in results])

    @property
    def slug(self) -> str:
        return slug(self.machine)

    def merged_over(self, older: Report) -> Report:
        """This report, and what the older one has of other ops, modes and dtypes: all sizes are replaced at once."""
        again = {(r.kind, r.op, r.device, r.mode, r.dtype) for r in self.results}
        kept = [r for r in older.results if (r.kind, r.op, r.device, r.mode, r.dtype) not in again]
        peaks = self.peaks.best_of(older.peaks)
        rows = sorted([*kept, *self.results], key=lambda r: (r.kind != "op", r.op))
        return Report(self.machine, self.versions, peaks, [judge(r, peaks) for r in rows])

    def write_json(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        body = {
            "schema": SCHEMA,
            "machine": self.machine,
            "versions": self.versions,
            "peaks": asdict(self.peaks),
            "results": [_rounded(asdict(r)) for r in self.results],
        }
        path.write_text(json.dumps(body, indent=1) + "\n")

    def write_csv(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        common = {**self.machine, **{f"{k}_version": v for k, v in self.versions.items()}}
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Result)] + list(common))
            writer.writeheader()
            writer.writerows(_rounded(asdict(r)) | common for r in self.results)


def judge(result: Result, peaks: Peaks) -> Result:
    """The row with its shares of the limit that ``peaks`` and its least work set."""
    if result.ours_ms is None or result.peer_ms is None or result.flops is None or result.bytes is None:
        return result
    seconds, limit = peaks.limit_seconds(result.flops, result.bytes, result.dtype)
    return replace(result, limit=limit, share=1e3 * seconds / result.ours_ms, peer_share=1e3 * seconds / result.peer_ms)


def read_json(path: Path) -> Report:
    """The report in ``path``.

    Raises:
        ValueError: it was written by another version of this module.
    """
    body = json.loads(path.read_text())
    if body.get("schema") != SCHEMA:
        raise ValueError(f"{path}: wanted schema {SCHEMA}, got {body.get('schema')!r}; measure again")
    peaks = body["peaks"]
    curve = tuple((int(size), float(gbs)) for size, gbs in peaks["copy_gbs"])
    return Report(
        body["machine"],
        body["versions"],
        Peaks(peaks["gflops"], curve, peaks["source"]),
        [Result(**row) for row in body["results"]],
    )


def provenance(threads: int) -> dict[str, Any]:
    """What every row carries beside its numbers: threads, allocator, commit and date."""
    return {
        "threads": threads,
        "allocator": allocator.current(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


@cache
def commit() -> str:
    """The commit that is checked out, with ``+`` where tracked files (other than results and documents) differ."""
    root = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results", ":!*.md", ":!docs")
        return git("rev-parse", "--short=10", "HEAD").strip() + ("+" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}


def select(results: Iterable[Result], **wanted: Any) -> list[Result]:
    """The rows whose attributes equal all of ``wanted``."""
    return [r for r in results if all(getattr(r, k) == v for k, v in wanted.items())]
