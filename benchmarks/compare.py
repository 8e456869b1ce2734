"""Two result files of the same machine, row by row: what a change of the code made faster or slower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.report import milliseconds, ratio
from benchmarks.result import Report, Result

#: A row counts as changed where the ratio to the peer moved by more than this and the quartiles do not overlap.
NOISE = 0.05


@dataclass(frozen=True)
class Change:
    """One row in both files. The peer is the yardstick: it is the same code in both, and cancels the machine's mood."""

    base: Result
    new: Result

    @property
    def factor(self) -> float:
        """How many times faster the new code is, each measured against the peer beside it."""
        return self.new.ratio / self.base.ratio

    @property
    def slower(self) -> bool:
        return self.factor < 1 - NOISE and self.new.ratio_high < self.base.ratio_low

    @property
    def faster(self) -> bool:
        return self.factor > 1 + NOISE and self.new.ratio_low > self.base.ratio_high


def compare_reports(base: Report, new: Report) -> list[Change]:
    """The rows that both reports have timed.

    Raises:
        ValueError: they come from different machines, or have no row in common.
    """
    if base.slug != new.slug:
        raise ValueError(f"the files come from different machines: {base.slug} and {new.slug}")
    before = {r.key: r for r in base.results if r.ratio is not None}
    changes = [Change(before[r.key], r) for r in new.results if r.ratio is not None and r.key in before]
    if not changes:
        raise ValueError("the files have no row in common")
    return changes


def print_comparison(changes: Sequence[Change], console: Console) -> None:
    columns = ("op", "size", "mode", "layout", "peer", "base", "new", "base / peer", "new / peer", "new vs base")
    table = Table(*columns, header_style="bold", pad_edge=False)
    for change in changes:
        base, new = change.base, change.new
        colour = "red" if change.slower else "green" if change.faster else "dim"
        table.add_row(
            *(new.op, new.problem, new.mode, new.layout, new.peer),
            *(milliseconds(base.ours_ms), milliseconds(new.ours_ms)),
            *(f"{ratio(base.ratio)}x", f"{ratio(new.ratio)}x"),
            f"[{colour}]{ratio(change.factor)}x[/]",
        )
    console.print(table)
