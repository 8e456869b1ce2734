"""The command line: ``python -m benchmarks run | tables | compare | gpu-report | list``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks import allocator
from benchmarks.case import LAYOUTS, MODES, all_cases
from benchmarks.models import MODELS, run_models
from benchmarks.models import MODES as MODEL_MODES
from benchmarks.result import RESULTS, Report, read_json
from benchmarks.runner import QUICK, Settings, run
from benchmarks.tables import draw_convolutions, write_tables

# A file or a pipe has no width of its own: wide enough there for every column.
console = Console(width=None if sys.stdout.isatty() else 200)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the process's exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    try:
        return args.command(args, arguments)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        console.print(f"[red]error:[/] {error}", highlight=False)
        return 2


def _run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    allocator.use(args.allocator or allocator.default(), arguments)
    import torch

    settings = replace(
        QUICK if args.quick else Settings(),
        impls=tuple(args.impl),
        dtypes=tuple(args.dtype),
        layouts=tuple(args.layout) if args.layout else None,
        modes=tuple(args.mode) if args.mode else None,
        device=args.device,
    )
    if args.seconds:
        settings = replace(settings, seconds=args.seconds)
    if args.no_compile:
        settings = replace(settings, compiled=False)
    threads = args.threads or torch.get_num_threads()
    with console.status("measuring the machine") as status:
        results = []
        if args.op is not None or args.model is None:
            results += run(args.op or None, settings=settings, threads=threads, progress=status.update)
        if args.model is not None or (args.op is None and not args.quick):
            results += run_models(args.model or None, settings=settings, threads=threads, progress=status.update)
        report = Report.of(results, args.device, threads)
    _print_and_write(report, args)
    return 1 if any(r.status.startswith("wrong") for r in results) else 0


def _print_and_write(report: Report, args: argparse.Namespace) -> None:
    from benchmarks.plots import draw
    from benchmarks.report import print_report

    print_report(report, console)
    if args.json:
        report.write_json(Path(args.json))
    if args.csv:
        report.write_csv(Path(args.csv))
    if args.plots:
        draw(report, Path(args.plots))
    if args.save:
        path = RESULTS / f"{report.slug}.json"
        (report.merged_over(read_json(path)) if path.exists() else report).write_json(path)
        console.print(f"saved in {path}", highlight=False)


def _tables(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    changed = write_tables()
    console.print("\n".join(f"wrote {path}" for path in changed) or "all tables are up to date", highlight=False)
    console.print(f"drew {draw_convolutions()}", highlight=False)
    return 0


def _list(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    for case in all_cases().values():
        console.print(f"{case.op}: " + "; ".join(p.name for p in case.problems), highlight=False)
    for model in MODELS:
        console.print(f"{model.name}: {model.label}", highlight=False)
    return 0


def _compare(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from benchmarks.compare import compare_reports, print_comparison

    changes = compare_reports(read_json(Path(args.base)), read_json(Path(args.new)))
    print_comparison(changes, console)
    return 1 if any(change.slower for change in changes) else 0


def _gpu_report(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from benchmarks.gpu_report import print_report

    print_report(console, args.dtype)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)

    timed = commands.add_parser("run", help="time ops and models against PyTorch")
    timed.set_defaults(command=_run)
    timed.add_argument("--op", nargs="*", metavar="NAME", help="ops, these only if named (`list` shows them)")
    timed.add_argument("--model", nargs="*", metavar="NAME", help="models, these only if named")
    timed.add_argument("--impl", nargs="+", default=["auto"], help="auto, reference, cpu, triton, cuda; or all")
    timed.add_argument("--dtype", nargs="+", default=["float32"], help="float32, bfloat16, float16, float64, tf32")
    timed.add_argument("--layout", nargs="+", choices=LAYOUTS, help="these layouts only")
    timed.add_argument("--mode", nargs="+", choices=(*MODES, *MODEL_MODES), help="these modes only")
    timed.add_argument("--device", default="cpu", help="cpu or cuda")
    timed.add_argument("--threads", type=int, help="threads for all sides; torch's default if not given")
    timed.add_argument("--allocator", choices=allocator.CHOICES, help="memory allocator of all sides; see allocator.py")
    timed.add_argument("--quick", action="store_true", help="one size an op, eager peers only, under a minute in all")
    timed.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    timed.add_argument("--seconds", type=float, help="how long each comparison is repeated")
    timed.add_argument("--json", metavar="FILE")
    timed.add_argument("--csv", metavar="FILE")
    timed.add_argument("--plots", metavar="DIRECTORY", help="write ratios.png and roofline.png")
    timed.add_argument("--save", action="store_true", help="put the rows into benchmarks/results")

    tables = commands.add_parser("tables", help="write the tables of README.md and docs/ from benchmarks/results")
    tables.set_defaults(command=_tables)
    compared = commands.add_parser("compare", help="two result files of one machine; exit status 1 if a row got slower")
    compared.set_defaults(command=_compare)
    compared.add_argument("base", metavar="BASE.json")
    compared.add_argument("new", metavar="NEW.json")
    modelled = commands.add_parser("gpu-report", help="what GPU kernels must do: a model from data sheets, no times")
    modelled.set_defaults(command=_gpu_report)
    modelled.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    commands.add_parser("list", help="ops and models and their sizes").set_defaults(command=_list)
    return parser


if __name__ == "__main__":
    sys.exit(main())
