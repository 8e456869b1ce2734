"""The machine: what it is, and how fast it measurably multiplies and copies, which is the yardstick of every row."""

from __future__ import annotations

import itertools
import math
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import gencore
from gencore.extension import EXTENSION

_MIB = 2**20
_WORKING_SETS = tuple(int(s * _MIB) for s in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256))
_GPU_WORKING_SETS = tuple(s * _MIB for s in (16, 64, 256, 1024))


@dataclass(frozen=True)
class Peaks:
    """Measured limits of the machine.

    Attributes:
        gflops: by dtype. On the CPU float32 is a loop of fused multiply-adds on registers, on all threads.
        copy_gbs: ``(bytes read and written, GB/s)`` of a copy, plain or streaming, whichever is faster, from the
            caches up to memory.
        source: how both were measured.
    """

    gflops: dict[str, float]
    copy_gbs: tuple[tuple[int, float], ...]
    source: str

    def bandwidth(self, working_set: float) -> float:
        """GB/s of a copy that touches ``working_set`` bytes, interpolated between the sizes measured."""
        points = self.copy_gbs
        if working_set <= points[0][0]:
            return points[0][1]
        for (low, low_gbs), (high, high_gbs) in itertools.pairwise(points):
            if working_set <= high:
                part = math.log(working_set / low) / math.log(high / low)
                return low_gbs + part * (high_gbs - low_gbs)
        return points[-1][1]

    def best_of(self, other: Peaks) -> Peaks:
        """The faster of two measurements, number by number: a disturbed one only ever comes out too low."""
        if self.source != other.source or [size for size, _ in self.copy_gbs] != [size for size, _ in other.copy_gbs]:
            return self
        gflops = {dtype: max(value, other.gflops.get(dtype, 0.0)) for dtype, value in self.gflops.items()}
        pairs = zip(self.copy_gbs, other.copy_gbs, strict=True)
        return Peaks(gflops, tuple((size, max(gbs, again)) for (size, gbs), (_, again) in pairs), self.source)

    def limit_seconds(self, flops: float, moved_bytes: float, dtype: str) -> tuple[float, str]:
        """The time below which a call cannot come, and what sets it: ``"compute"`` or ``"memory"``."""
        compute = flops / (self.gflops.get(dtype, self.gflops["float32"]) * 1e9)
        memory = moved_bytes / (self.bandwidth(moved_bytes) * 1e9)
        return (compute, "compute") if compute > memory else (memory, "memory")


def measure_peaks(device: str = "cpu", threads: int | None = None) -> Peaks:
    """Measure FMA and copy peaks with every page touched first; ``threads`` are torch's if None. Takes a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return _measure_peaks(device)
    finally:
        torch.set_num_threads(before)


def _measure_peaks(device: str) -> Peaks:
    if device != "cpu":
        return _library_peaks(device, _GPU_WORKING_SETS, (torch.float32, torch.bfloat16, torch.float16))
    if not EXTENSION.loaded:
        return _library_peaks(device, _WORKING_SETS, (torch.float32,))
    native = torch.ops.gencore_c
    rounds = 200_000
    flops = native.fma_peak(rounds)
    gflops = flops / best_seconds(lambda: native.fma_peak(rounds), repeats=40) / 1e9
    curve = []
    for size in _WORKING_SETS:
        source, destination = torch.ones(size // 8), torch.zeros(size // 8)
        loops = max(1, 16 * _MIB // size)
        fastest = min(
            best_seconds(lambda s=stream, a=source, b=destination: native.copy_peak(a, s, b), loops=loops)
            for stream in (False, True)
        )
        curve.append((size, float(f"{size / fastest / 1e9:.4g}")))
    return Peaks({"float32": round(gflops, 1)}, tuple(curve), "gencore's multiply-add and copy loops, best of several")


def _library_peaks(device: str, sizes: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> Peaks:
    side = 8192 if device != "cpu" else 1024
    gflops = {}
    for dtype in dtypes:
        a = torch.randn(side, side, device=device, dtype=dtype)
        gflops[str(dtype).removeprefix("torch.")] = round(
            2 * side**3 / best_seconds(lambda a=a: torch.mm(a, a), device=device) / 1e9, 1
        )
    curve = []
    for size in sizes:
        a, b = (torch.ones(size // 8, device=device) for _ in range(2))
        curve.append((size, round(size / best_seconds(lambda a=a, b=b: b.copy_(a), device=device) / 1e9, 1)))
    return Peaks(gflops, tuple(curve), "torch.mm and Tensor.copy_, best of several")


def best_seconds(call: Callable[[], Any], *, repeats: int = 8, loops: int = 1, device: str = "cpu") -> float:
    """The shortest time of one call in ``repeats`` runs of ``loops`` calls, after one run that does not count."""
    wait = synchronizer(device)
    best = math.inf
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        for _ in range(loops):
            call()
        wait()
        elapsed, first = (time.perf_counter() - start) / loops, best == math.inf
        best = 1e30 if first else min(best, elapsed)
    return best


def synchronizer(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def describe(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, instruction set, memory, operating system; and the GPU, where that is what is timed."""
    facts = gencore.env().facts
    machine: dict[str, Any] = {
        "processor": facts["processor"] + _generation(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "instruction_set": EXTENSION.isa or "extension not loaded",
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.libc_ver()[0]} {platform.libc_ver()[1]}".strip(),
    }
    if device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name(device)
    return machine


def _generation() -> str:
    """`` family 26 model 2``: virtual machines often name no more than the maker's brand."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(r"cpu family\s*:\s*(\d+)\s+model\s*:\s*(\d+)", text)
    return f" family {found[1]} model {found[2]}" if found else ""


def slug(machine: dict[str, Any]) -> str:
    """The machine's name as a file name: ``amd-epyc-family-26-model-2-2-cores-avx512``."""
    words = machine.get("gpu") or f"{machine['processor']} {machine['cores']} cores {machine['instruction_set']}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "compiler": gencore.env().facts["built with"].partition(",")[0]}
    for package in ("gencore", "torch", "triton", "numpy"):
        try:
            found[package] = torch.__version__ if package == "torch" else version(package)
        except PackageNotFoundError:
            continue
    return found
