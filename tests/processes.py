"""Runs a part of the suite, or a script, in a process of its own, with another environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_python(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` with the environment's changes; an empty value removes the variable."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | environment
    env = {k: v for k, v in env.items() if v}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def run_pytest(*arguments: str, **environment: str) -> str:
    """Run pytest and return its last line (``12 passed in 3.4s``); anything but success fails the calling test."""
    # Two workers: such a test may be the last of its suite, while the other cores have nothing left to do.
    options = ("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "--no-header")
    result = run_python(*options, *arguments, **environment)
    assert result.returncode == 0, f"{result.stdout[-8000:]}\n{result.stderr[-2000:]}"
    lines = [line for line in result.stdout.splitlines() if re.search(r"\d+ passed", line)]
    assert lines, f"no test passed:\n{result.stdout[-2000:]}"
    return lines[-1].strip("= ")
