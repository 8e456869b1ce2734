"""Writes the tables of README.md and docs/ from the committed results: no number in them is typed by hand.

A document holds a pair of markers, and what stands between them is generated::

    <!-- benchmarks:NAME -->
    <!-- /benchmarks -->

NAME is an op or a model (all its rows), ``summary-ops`` or ``summary-models`` (one row a size and mode, one column a
peer), or ``headline-ops`` (the same for the sizes of the quick selection, one or two an op).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.case import all_cases
from benchmarks.plots import roofline
from benchmarks.report import markdown, summary
from benchmarks.result import RESULTS, Report, Result, read_json

ROOT = Path(__file__).parents[1]
_SECTION = re.compile(r"(<!-- benchmarks:(?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- /benchmarks -->)", re.DOTALL)


def write_tables(root: Path = ROOT, results: Path | None = None) -> list[Path]:
    """Bring every document up to date with the results file; returns those that changed."""
    report = committed_report() if results is None else read_json(results)
    changed = []
    for path in documents(root):
        text = path.read_text()
        new = generate(text, report)
        if new != text:
            path.write_text(new)
            changed.append(path)
    return changed


def draw_convolutions(root: Path = ROOT) -> Path:
    """The roofline of the whole family of convolutions, from the committed results."""
    report = committed_report()
    family = [r for r in report.results if r.kind == "op" and r.op.startswith(("conv", "linear"))]
    rows = [r for r in family if r.ratio is not None and r.dtype == "float32"]  # whose peak is drawn
    return roofline(report, rows, root / "docs" / "images" / "convolutions.png")


def generate(text: str, report: Report) -> str:
    """``text`` with the body of every marked section made anew.

    Raises:
        ValueError: a marker names something of which there are no results.
    """

    def section(match: re.Match[str]) -> str:
        rows = rows_of(report, match["name"])
        if not rows:
            raise ValueError(f"the marker benchmarks:{match['name']} names nothing that was measured")
        table = summary if match["name"].startswith(("summary-", "headline-")) else markdown
        return f"{match[1]}\n{table(report, rows)}\n\n{match[4]}"

    return _SECTION.sub(section, text)


def rows_of(report: Report, name: str) -> list[Result]:
    """The rows that belong under a marker."""
    if name == "headline-ops":
        quick = {(case.op, problem.name) for case in all_cases().values() for problem in case.problems if problem.quick}
        return [r for r in report.results if (r.op, r.problem) in quick]
    if name.startswith("summary-"):
        return [r for r in report.results if r.kind == name.removeprefix("summary-").rstrip("s")]
    return [r for r in report.results if r.op == name]


def documents(root: Path = ROOT) -> Iterator[Path]:
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        if path.exists() and _SECTION.search(path.read_text()):
            yield path


def committed_report(directory: Path = RESULTS) -> Report:
    """The committed results; where there are several machines, the first by name.

    Raises:
        FileNotFoundError: nothing was measured yet.
    """
    files = sorted(directory.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"there are no results in {directory}; run `python -m benchmarks run --save`")
    return read_json(files[0])
