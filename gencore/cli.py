"""The command line: ``gencore env | demo | gallery`` (or ``python -m gencore ...``)."""

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
    demo.add_argument("--seconds", type=float, default=220.0, help="time for everything (%(default)s)")
    demo.add_argument("--steps", type=int, help="at most this many training steps a model, for a quick look")
    demo.add_argument("--no-op-table", action="store_true", help="leave the timing of single ops out")
    gallery = commands.add_parser("gallery", help="train one model on real pictures, and draw what it learned")
    gallery.add_argument("model", help="progan, stylegan2, ...; an unknown one lists them")
    gallery.add_argument("--out", default="out/gallery", metavar="FOLDER", help="for the pictures (%(default)s)")
    gallery.add_argument("--seconds", type=float, default=180.0, help="time for training (%(default)s)")
    gallery.add_argument("--steps", type=int, help="at most this many training steps")
    arguments = parser.parse_args(argv)
    if arguments.command == "env":
        print(env())
        return 0
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    # Imported here: no other command needs what these import.
    try:
        if arguments.command == "gallery":
            from gencore.apps.gallery import run_gallery

            run_gallery(arguments.model, arguments.out, seconds=arguments.seconds, steps=arguments.steps)
        else:
            from gencore.apps.demo import run_demo

            op_table = not arguments.no_op_table
            run_demo(arguments.out, seconds=arguments.seconds, steps=arguments.steps, op_table=op_table)
    except (MissingPackage, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
