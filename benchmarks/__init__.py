"""Benchmarks: every op and every model beside PyTorch, on the same tensors, in turn, after a check that it is right.

``python -m benchmarks run`` is the command line, :func:`run` the same from Python.
"""

from benchmarks.result import Report, Result, read_json
from benchmarks.runner import Settings, run

__all__ = ["Report", "Result", "Settings", "read_json", "run"]
