"""The command line: ``gencore env | demo`` (or ``python -m gencore ...``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gencore.environment import env
from gencore.optional import MissingPackage


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="gencore", description="Kernels for generative image models.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("env", help="what is installed, what is missing, why, and how to mend it")
    demo = commands.add_parser("demo", help="time the ops, train a VAE and a DCGAN on digits, write a report")
    demo.add_argument("--out", default="out/demo", metavar="FOLDER", help="for pictures and report (%(default)s)")
    demo.add_argument("--seconds", type=float, default=155.0, help="time for training (%(default)s)")
    demo.add_argument("--steps", type=int, help="at most this many training steps a model, for a quick look")
    demo.add_argument("--no-op-table", action="store_true", help="leave the timing of single ops out")
    arguments = parser.parse_args(argv)
    if arguments.command == "env":
        print(env())
        return 0
    return _demo(arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from gencore.apps.demo import run_demo  # here: no other command needs what it imports

    try:
        run_demo(arguments.out, seconds=arguments.seconds, steps=arguments.steps, op_table=not arguments.no_op_table)
    except (MissingPackage, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
