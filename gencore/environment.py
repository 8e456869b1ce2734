"""What this machine and this installation offer, what is missing, why, and how to mend it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from gencore.extension import EXTENSION, HAVE_TRITON, MEMORY_EXTENSION, build_record
from gencore.processor import model_name


@dataclass(frozen=True)
class Environment:
    """Facts, and for everything that is missing a (what, why, fix) triple. ``print`` it for a report."""

    facts: dict[str, str]
    problems: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        width = max(map(len, self.facts))
        lines = [f"{key:<{width}}  {value}" for key, value in self.facts.items()]
        for what, why, fix in self.problems:
            lines += ["", f"missing: {what}", f"    why: {why}", f"    fix: {fix}"]
        return "\n".join(lines)


def env() -> Environment:
    """The environment report, as ``python -m gencore env`` prints it. Loads nothing and changes nothing."""
    record = build_record()
    facts = {
        "gencore": _version("gencore"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": model_name(),
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "C++ extension": f"loaded, runs {EXTENSION.isa}" if EXTENSION.loaded else "not loaded",
        "memory extension": "loaded" if MEMORY_EXTENSION.loaded else "not loaded",
        "built with": f"{record.get('compiler', 'unknown')}, torch {record.get('torch', 'unknown')}",
        "CUDA kernels": "built"
        if record.get("cuda")
        else f"not built ({record.get('cuda_reason', 'no build record')})",
        "GENCORE_BACKEND": os.environ.get("GENCORE_BACKEND", "not set (auto)"),
    }
    return Environment(facts, tuple(_problems()))


def _problems() -> Iterator[tuple[str, str, str]]:
    if not EXTENSION.loaded:
        yield "C++ extension (impl='cpu')", EXTENSION.reason, EXTENSION.fix
    if not MEMORY_EXTENSION.loaded:
        yield "memory extension (gencore.memory)", MEMORY_EXTENSION.reason, MEMORY_EXTENSION.fix
    if not HAVE_TRITON:
        yield "Triton (impl='triton')", "the package triton is not installed", "pip install 'gencore[triton]'"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
