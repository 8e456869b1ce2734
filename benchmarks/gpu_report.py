"""What the GPU kernels must move and compute, and what is known of them where there is no GPU: no time is measured.

For each op and size: the kernels that PyTorch's version is made of, their traffic and operations, read off a traced
call; the least that one fused op must do; and the time that both allow on a GPU's data sheet (a roofline: every kernel
at full bandwidth or full rate, nothing for launches). Beside it, what the compiler makes of our Triton kernels for each
GPU, as the tests in tests/offline establish it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.case import Case, Cost, Inputs, Maker, Problem, all_cases, as_tuple
from benchmarks.parity import compute

ROOT = Path(__file__).parents[1]
BUDGETS = ROOT / "tests" / "offline" / "budgets.json"


@dataclass(frozen=True)
class GPU:
    """Figures of the vendor's data sheet, dense: memory in GB/s, rates in TFLOP/s; ``matrix`` is that of the matrix
    units, by dtype (TF32 for float32)."""

    name: str
    target: str
    memory: float
    vector: float
    matrix: dict[str, float]

    def seconds(self, kernel: Kernel, dtype: str) -> float:
        """What the roofline allows for one kernel."""
        rate = self.matrix[dtype] if kernel.matrix else self.vector
        return max(kernel.bytes / (self.memory * 1e9), kernel.flops / (rate * 1e12))


GPUS = (
    GPU("A100", "sm_80", 2039, 19.5, {"float32": 156, "bfloat16": 312}),
    GPU("H100", "sm_90", 3350, 67, {"float32": 494, "bfloat16": 989}),
    GPU("B200", "sm_100", 8000, 75, {"float32": 1100, "bfloat16": 2250}),
    GPU("MI300X", "gfx942", 5300, 163.4, {"float32": 653, "bfloat16": 1307}),
)


@dataclass(frozen=True)
class Kernel:
    """One launch: bytes of its operands and results, each once; operations; whether the matrix units do them."""

    name: str
    bytes: float
    flops: float
    matrix: bool = False


@dataclass(frozen=True)
class Model:
    """One op at one size: PyTorch's chain of kernels and the fused op, by the same rules."""

    op: str
    problem: str
    mode: str
    dtype: str
    chain: tuple[Kernel, ...]
    fused: Kernel

    def seconds(self, gpu: GPU) -> tuple[float, float]:
        """What ``gpu`` allows for the fused op and for the chain."""
        return gpu.seconds(self.fused, self.dtype), sum(gpu.seconds(kernel, self.dtype) for kernel in self.chain)


def models(dtypes: Sequence[str] = ("float32", "bfloat16")) -> Iterator[Model]:
    """Every case at its quick sizes, forward and forward+backward. Runs on tensors without memory."""
    for case in all_cases().values():
        for problem in (p for p in case.problems if p.quick):
            for mode in (m for m in problem.modes or case.modes if m != "double backward"):
                for dtype in dtypes:
                    yield model(case, problem, mode, dtype)


def model(case: Case, problem: Problem, mode: str, dtype: str) -> Model:
    """Trace the eager twin of ``case``, and set its traffic beside the least that the case declares."""
    torch_dtype: torch.dtype = getattr(torch, dtype)
    make = Maker(torch_dtype, torch.device("meta"), "contiguous", torch.Generator())
    inputs = case.inputs(problem, make)

    def eager(x: Inputs) -> tuple[Tensor, ...]:
        return as_tuple(case.eager(problem, x))

    weights = [torch.empty_like(out) for out in compute(eager, inputs, case.differentiable, "forward").values()]
    with Trace() as trace:
        compute(eager, inputs, case.differentiable, mode, weights)
    cost: Cost = case.cost(problem, mode, torch_dtype.itemsize)
    matrix = any(kernel.matrix for kernel in trace.kernels)
    fused = Kernel(case.op, cost.bytes, cost.flops, matrix)
    return Model(case.op, problem.name, mode, dtype, tuple(trace.kernels), fused)


class Trace(TorchDispatchMode):
    """Notes every op that would be a kernel: views and mere allocations are not."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not is_view and not func.__name__.startswith(("empty", "new_empty")):
            operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            again = operands[: _READ_TWICE.get(func.overloadpacket, 0)] if _in_training(args) else []
            moved = sum(map(_bytes, [*operands, *again, *results]))
            self.kernels.append(Kernel(func.__name__, moved, *_flops(func, args, kwargs, result, operands + results)))
        return result


# How many of the first operands are read in two passes, by the rule that the cases follow too: statistics must be known
# before the first result is.
_READ_TWICE = {torch.ops.aten.native_batch_norm: 1, torch.ops.aten.native_batch_norm_backward: 2}


def _in_training(args: Any) -> bool:
    """Batch norm's flag, forward and backward alike; with fixed statistics one pass is enough."""
    return any(argument is True for argument in args)


def _bytes(x: Tensor) -> int:
    """What of ``x`` is in memory: an expanded tensor is not more than its storage."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _flops(func: Any, args: Any, kwargs: Any, result: Any, tensors: list[Tensor]) -> tuple[float, bool]:
    """Operations, and whether they are matrix products; element-wise ops and reductions count one an element."""
    if counter := flop_registry.get(func.overloadpacket):
        return float(counter(*args, **kwargs, out_val=result)), True
    return float(max((x.numel() for x in tensors), default=0)), False


# --- what the compiler made of our kernels ---------------------------------------------------------------------------


@dataclass
class Compiled:
    """The worst over all kernels and specialisations of an op, for one target."""

    kernels: int = 0
    registers: int = 0
    spills: int = 0
    shared: int = 0

    def __str__(self) -> str:
        return f"{self.kernels} kernels, {self.registers} registers, {self.spills} spills, {self.shared} B shared"


def compiled(op: str, target: str, budgets: Path = BUDGETS) -> Compiled | None:
    """What tests/offline found for ``target``; None where the op has no Triton kernel there."""
    if not budgets.exists():
        return None
    found = Compiled()
    for launch, targets in json.loads(budgets.read_text()).items():
        if isinstance(targets, dict) and launch.split()[0] in (op, f"{op}_backward"):
            for resources in targets.get(target, {}).values():
                found.kernels += 1
                found.registers = max(found.registers, resources["registers"])
                found.spills = max(found.spills, resources["spills"])
                found.shared = max(found.shared, resources["shared"])
    return found if found.kernels else None


def print_report(console: Console, dtypes: Sequence[str]) -> None:
    """The whole report."""
    table = Table(header_style="bold", pad_edge=False, title="A model, not a measurement")
    for column in ("op", "size", "mode", "dtype", "PyTorch", "MiB", "fused MiB"):
        table.add_column(column)
    for gpu in GPUS:
        table.add_column(f"{gpu.name}: fused, PyTorch, bound", justify="right")
    for row in models(dtypes):
        moved = sum(kernel.bytes for kernel in row.chain)
        cells = [row.op, row.problem, row.mode, row.dtype, f"{len(row.chain)} kernels"]
        cells += [f"{moved / 2**20:.1f}", f"{row.fused.bytes / 2**20:.1f}"]
        for gpu in GPUS:
            ours, chain = row.seconds(gpu)
            cells.append(f"{1e6 * ours:.1f} µs, {1e6 * chain:.1f} µs, {chain / ours:.1f}x")
        table.add_row(*cells)
    console.print(table)
    kernels = Table(
        header_style="bold", pad_edge=False, title="Triton kernels as compiled: the most of any one of them"
    )
    kernels.add_column("op")
    for gpu in GPUS:
        kernels.add_column(f"{gpu.target} ({gpu.name})")
    for op in all_cases():
        kernels.add_row(op, *(str(compiled(op, gpu.target) or "no kernel") for gpu in GPUS))
    console.print(kernels)
    console.print(
        "Times are what data sheets allow: every kernel at full bandwidth or full rate, launches free. 'Bound' is how "
        "much faster the fused op could be at most by moving less; what it is on a GPU, only a GPU can say. That the "
        "kernels compute the right thing is checked by the interpreter (pytest tests/interpreter), that they compile "
        "without spills by pytest tests/offline.",
        highlight=False,
    )
