"""Two PNG charts: how many times faster each row is, and where ours and PyTorch stand under the machine's roofs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.result import Report, Result

_OURS, _PEER, _SLOWER = "#2b6cb0", "#a0aec0", "#c05621"


def draw(report: Report, directory: Path) -> list[Path]:
    """Write ``ratios.png`` and ``roofline.png`` into ``directory``; returns their paths (none without timed rows)."""
    timed = [r for r in report.results if r.ratio is not None]
    if not timed:
        return []
    directory.mkdir(parents=True, exist_ok=True)
    return [_ratios(timed, directory / "ratios.png"), roofline(report, timed, directory / "roofline.png")]


def _ratios(results: Sequence[Result], path: Path) -> Path:
    labels = [f"{r.op}  {r.problem}\n{r.mode}, {r.layout}, {r.dtype}, vs {r.peer}" for r in results]
    middle = [r.ratio for r in results]
    errors = [[r.ratio - r.ratio_low for r in results], [r.ratio_high - r.ratio for r in results]]
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.42 * len(results)), layout="constrained")
    colours = [_OURS if value >= 1 else _SLOWER for value in middle]
    axes.barh(range(len(results)), middle, xerr=errors, color=colours, ecolor="black", capsize=2, height=0.7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(yticks=range(len(results)), xscale="log", xlabel="times faster than the peer (median, quartiles)")
    axes.set_yticklabels(labels, fontsize=7)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.grid(axis="x", which="both", alpha=0.25)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def roofline(report: Report, results: Sequence[Result], path: Path) -> Path:
    """Write a chart of rate over intensity, ours and the fastest peer's, under the measured peaks."""
    peak = report.peaks.gflops["float32"]
    memory, cache = report.peaks.copy_gbs[-1][1], max(gbs for _, gbs in report.peaks.copy_gbs)
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    intensity = [r.flops / r.bytes for r in results]
    low, high = min([1.0, *intensity]) / 2, max([20.0, *intensity]) * 2
    for name, bandwidth, style in (("memory", memory, "-"), ("cache", cache, "--")):
        points = [low, peak / bandwidth, high]
        axes.plot(points, [min(peak, x * bandwidth) for x in points], "k" + style, linewidth=1, label=None)
        at = 0.6 * peak / bandwidth
        side = "left" if name == "memory" else "right"
        axes.annotate(f"  {name}, {bandwidth:.0f} GB/s  ", (at, at * bandwidth), fontsize=8, ha=side, va="center")
    axes.annotate(f"{peak:.0f} GFLOP/s", (high / 8, peak * 1.06), fontsize=8)
    fastest_peer: dict[tuple[str, ...], Result] = {}
    for result in results:
        key = (*result.key[:7], result.impl)
        if key not in fastest_peer or result.peer_ms < fastest_peer[key].peer_ms:
            fastest_peer[key] = result
    ops = sorted({r.op for r in fastest_peer.values()})
    colours = dict(zip(ops, plt.get_cmap("tab10").colors * (1 + len(ops) // 10), strict=False))
    named = len(fastest_peer) <= 20  # more names than that cover one another
    rates = []
    for result in fastest_peer.values():
        x, ours, peer = result.flops / result.bytes, result.gflops, result.flops / result.peer_ms / 1e6
        rates += [ours, peer]
        axes.plot([x, x], [peer, ours], color=_PEER, linewidth=1, zorder=1)
        axes.scatter([x], [peer], color=_PEER, s=22, zorder=2)
        axes.scatter([x], [ours], color=colours[result.op], s=30, zorder=3)
        if named:
            axes.annotate(f" {result.op} {result.problem}, {result.mode}", (x, ours), fontsize=5)
    for op in ops:
        axes.scatter([], [], color=colours[op], label=f"gencore, {op}")
    axes.scatter([], [], color=_PEER, label="the fastest PyTorch peer")
    axes.set_ylim(min(rates) / 2, max(peak, *rates) * 1.3)
    axes.set(xscale="log", yscale="log", xlabel="least flops per byte", ylabel="GFLOP/s", xlim=(low, high))
    axes.grid(which="both", alpha=0.2)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
