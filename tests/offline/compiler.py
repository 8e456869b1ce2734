"""Compiles what Triton's JIT would compile, for GPUs that are not there, and reads what came out.

A launcher is called with CPU tensors as it is; in the place of a launch, the very specialisation that the JIT would
build for these arguments (their alignment, their divisibility, their constants) is compiled for the target.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.autotuner import Autotuner
from triton.runtime.driver import driver

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Machine:
    """A GPU to compile for, and how much shared memory a block of it may use."""

    target: GPUTarget
    shared_limit: int


MACHINES = {
    "sm_80": Machine(GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": Machine(GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": Machine(GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": Machine(GPUTarget("hip", "gfx942", 64), 64 * 1024),
}


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes. ``spills`` is 0 where no register went to memory; accesses are static counts."""

    registers: int
    spills: int
    shared: int
    loads: int
    wide_loads: int
    stores: int
    wide_stores: int

    def row(self) -> dict[str, int]:
        return asdict(self)


class _PretendDriver(DriverBase):  # type: ignore[misc]
    """Names the target and does nothing else."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> Any:
        return (self.target.backend, self.target.arch)  # the key of the JIT's cache

    def get_current_stream(self, device: Any) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing can be timed here")


@contextmanager
def compiling_for(machine: Machine) -> Iterator[list[tuple[str, Any]]]:
    """Within the block, launches compile for ``machine``; the list gets (kernel's name, compiled kernel)."""
    compiled: list[tuple[str, Any]] = []
    launch, active = triton.KernelInterface.__getitem__, driver._active

    def compile_instead(kernel: Any, grid: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            jit, settings = kernel, [{}]
            if isinstance(kernel, Autotuner):  # every configuration that it would try
                kernel.nargs = dict(zip(kernel.arg_names, args, strict=False))
                jit, settings = kernel.fn, [config.all_kwargs() for config in kernel.prune_configs(kwargs)]
            for setting in settings:
                compiled.append((jit.fn.__name__, jit.warmup(*args, grid=grid, **kwargs, **setting)))

        return call

    driver.set_active(_PretendDriver(machine.target))
    triton.KernelInterface.__getitem__ = compile_instead
    try:
        yield compiled
    finally:
        triton.KernelInterface.__getitem__ = launch
        driver._active = active


def resources(kernel: Any) -> Resources:
    """Registers, spills, shared memory and the width of global memory accesses, from the machine code."""
    return _amd(kernel) if "amdgcn" in kernel.asm else _nvidia(kernel)


def _nvidia(kernel: Any) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "-c", "-ndf", file.name)  # no analysis of data flow: only names are looked at
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    instructions = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", code, re.MULTILINE)
    spilled = sum(name.startswith(("LDL", "STL")) for name in instructions)
    loads = [name for name in instructions if name.startswith("LDG")]
    stores = [name for name in instructions if name.startswith("STG")]
    return Resources(
        registers,
        stack + local + spilled,
        kernel.metadata.shared,
        len(loads),
        sum(".128" in name for name in loads),
        len(stores),
        sum(".128" in name for name in stores),
    )


def _amd(kernel: Any) -> Resources:
    code = kernel.asm["amdgcn"]

    def value(key: str) -> int:
        return int(re.findall(rf"{re.escape(key)}:?\s+(\d+)", code)[-1])

    loads = re.findall(r"^\s*((?:global|buffer)_load_\w+)", code, re.MULTILINE)
    stores = re.findall(r"^\s*((?:global|buffer)_store_\w+)", code, re.MULTILINE)
    return Resources(
        value(".vgpr_count"),
        # Scalar registers spill into lanes of vector registers; where those do not suffice, the segment tells.
        value(".vgpr_spill_count") + value(".private_segment_fixed_size"),
        kernel.metadata.shared,
        len(loads),
        sum("dwordx4" in name for name in loads),
        len(stores),
        sum("dwordx4" in name for name in stores),
    )


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / name), *arguments], capture_output=True, text=True, check=True).stdout
