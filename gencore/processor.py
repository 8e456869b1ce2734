"""Whose processor this is, where an implementation's speed hangs on it."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def model_name() -> str:
    """As the processor names itself, such as ``"AMD EPYC 9R45"``."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


# MKL reaches 70 to 90% of the peak on Intel's processors; on AMD's 39 to 85% were measured, below our own.
MKL_RUNS_AT_FULL_SPEED = torch.backends.mkl.is_available() and _cpuinfo("vendor_id") == "GenuineIntel"

HAS_BFLOAT16 = "avx512_bf16" in _cpuinfo("flags").split()
"""Instructions for it, or better ones: all that have AMX have these, too."""
