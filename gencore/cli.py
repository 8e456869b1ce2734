"""The command line: ``gencore env`` (or ``python -m gencore env``)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gencore.environment import env


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="gencore", description="Kernels for generative image models.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("env", help="what is installed, what is missing, why, and how to mend it")
    parser.parse_args(argv)
    print(env())
    return 0
