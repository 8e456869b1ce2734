"""Chooses the implementation of an op, and says why.

Every op has a name and an ordered table of implementations. ``impl="auto"`` takes the first one that accepts the
arguments and is not known to be slower than plain PyTorch for them; any other value runs that implementation or
raises, and never falls back. The choice can be made per call (``impl=``), per block (``with backend("triton"):``) or
per process (environment variable ``GENCORE_BACKEND``), in this order of precedence.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import forward_ad

from gencore.extension import EXTENSION, HAVE_TRITON

IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton", "cuda")

# Why an implementation cannot run these arguments (or is slower for them); None: it can (or is not).
Reason = str | None
Predicate = Callable[..., Reason]


class UnsupportedImplementation(RuntimeError):
    """An implementation was asked for by name and cannot run these arguments."""


@contextmanager
def backend(impl: str) -> Iterator[None]:
    """Within the block, every op called with ``impl="auto"`` uses ``impl`` instead (in this thread).

    Args:
        impl: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.

    Raises:
        ValueError: if ``impl`` is none of these.
    """
    check_name(impl, "backend")
    previous = _state.impl
    _state.impl = impl
    try:
        yield
    finally:
        _state.impl = previous


def current_backend() -> str:
    """What ``impl="auto"`` stands for in this thread."""
    return _state.impl


def is_named(impl: str) -> bool:
    """Whether ``impl``, or the backend in its place, names an implementation, so that nothing else may run."""
    return impl != "auto" or _state.impl != "auto"


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which implementations of ``op`` exist, which accept these arguments, which one runs, and why.

    Args:
        op: the op's name, or its public function: ``"batch_norm_act"`` or ``gencore.functional.batch_norm_act``.
        args, kwargs: what the op would be called with. Nothing is computed.

    Returns:
        An :class:`Explanation`; ``print`` it, or read ``.chosen`` and ``.rows``.

    Raises:
        ValueError: if there is no such op.
    """
    name = op if isinstance(op, str) else op.__name__
    if name not in OPS:
        raise ValueError(f"explain: there is no op {name!r}; there are {', '.join(sorted(OPS))}")
    return OPS[name].explain(*args, **kwargs)


@dataclass(frozen=True)
class Implementation:
    """One row of an op's table.

    ``supports`` and ``slower`` are called with the op's own arguments (without ``impl``) and return a reason or None:
    why the implementation cannot run them, and why ``auto`` passes it over although it could.
    """

    supports: Predicate
    slower: Predicate = lambda *args, **kwargs: None


@dataclass(frozen=True)
class Explanation:
    """The answer of :func:`explain`: the choice and, for each implementation in order, accepted or not and why."""

    op: str
    requested: str
    chosen: str | None
    rows: tuple[tuple[str, bool, str], ...]

    def __str__(self) -> str:
        lines = [f"{self.op}: impl={self.requested!r} runs {self.chosen!r}"]
        for name, accepted, why in self.rows:
            mark = "*" if name == self.chosen else ("+" if accepted else "-")
            lines.append(f"  {mark} {name:<10} {why}")
        return "\n".join(lines)


class Op:
    """An op's name and its implementations, in the order in which ``auto`` tries them; plain PyTorch comes last."""

    def __init__(self, name: str, implementations: Mapping[str, Implementation]) -> None:
        self.name = name
        self.implementations = {**implementations, "reference": Implementation(lambda *args, **kwargs: None)}
        OPS[name] = self

    def select(self, impl: str, *args: Any, **kwargs: Any) -> str:
        """The name of the implementation to run.

        Raises:
            ValueError: if ``impl`` is not a known name.
            UnsupportedImplementation: if the one asked for cannot run these arguments.
        """
        if impl == "auto":
            impl = _state.impl
        if impl == "auto":
            if _pytorch_alone() is not None:
                return "reference"
            for name, candidate in self.implementations.items():
                reason = candidate.supports(*args, **kwargs)
                if reason is None and candidate.slower(*args, **kwargs) is None:
                    return name
                if not EXTENSION.loaded and reason == _without_extension():
                    _warn_of_slowness(reason)
        check_name(impl, self.name)
        candidate = self.implementations.get(impl, _ABSENT)
        reason = candidate.supports(*args, **kwargs)
        if reason is not None:
            raise UnsupportedImplementation(f"{self.name}: impl={impl!r} cannot run here: {reason}")
        return impl

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        requested = kwargs.pop("impl", "auto")
        requested = _state.impl if requested == "auto" else requested
        rows = []
        for name, candidate in self.implementations.items():
            refusal = candidate.supports(*args, **kwargs)
            alone = None if name == "reference" else _pytorch_alone()
            slower = alone or candidate.slower(*args, **kwargs) if refusal is None else None
            why = (
                refusal
                or slower
                or ("plain PyTorch runs anything" if name == "reference" else "accepts these arguments")
            )
            rows.append((name, refusal is None and slower is None, why))
        try:
            chosen = self.select(requested, *args, **kwargs)
        except UnsupportedImplementation:
            chosen = None
        return Explanation(self.name, requested, chosen, tuple(rows))


OPS: dict[str, Op] = {}
_ABSENT = Implementation(lambda *args, **kwargs: "this op has no such implementation")


# --- reasons that the ops share --------------------------------------------------------------------------------------

_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ON_THE_CPU = "the tensors are on cpu, not on a GPU (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests)"


def _pytorch_alone() -> Reason:
    """Why ``auto`` takes plain PyTorch for any arguments: what is at work here knows PyTorch's own ops alone."""
    if torch.compiler.is_compiling():
        return None
    if torch.jit.is_tracing():
        return "torch.jit.trace records PyTorch's own ops"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is PyTorch's alone"
    return None


def cpu_refusal(x: torch.Tensor, *others: torch.Tensor | None) -> Reason:
    """Why the C++ CPU kernels cannot take ``x``, and beside it the ``others``."""
    if not x.is_cpu:
        return f"the tensors are on {x.device}, not on the CPU"
    if x.dtype not in _CPU_DTYPES:
        return f"{x.dtype} is not one of float32, float64, bfloat16, float16"
    return _layout_refusal(x, *others) if EXTENSION.loaded else _without_extension()


def _without_extension() -> str:
    return f"the C++ extension is not loaded: {EXTENSION.reason}; {EXTENSION.fix}"


def _warn_of_slowness(reason: str) -> None:
    """Once a process: who did not ask for plain PyTorch should not take its time for gencore's."""
    global _warned
    if not _warned and not torch.compiler.is_compiling():
        _warned = True
        warnings.warn(
            f"gencore runs on plain PyTorch, at its speed: {reason}. (impl='reference', gencore.backend or "
            "GENCORE_BACKEND=reference asks for it, and then nothing is said.)",
            RuntimeWarning,
            stacklevel=4,
        )


_warned = False


def triton_refusal(x: torch.Tensor, *others: torch.Tensor | None) -> Reason:
    """Why the Triton kernels cannot take ``x``, and beside it the ``others``."""
    if not HAVE_TRITON:
        return "Triton is not installed; `pip install 'gencore[triton]'`"
    if not (x.is_cuda or _INTERPRET):
        return _ON_THE_CPU if x.is_cpu else f"the tensors are on {x.device}, not on a GPU"
    if x.dtype not in _GPU_DTYPES:
        return f"{x.dtype} is not one of float32, bfloat16, float16"
    return _layout_refusal(x, *others)


def _layout_refusal(*tensors: torch.Tensor | None) -> Reason:
    for x in tensors:
        if x is not None and x.layout != torch.strided:
            return f"the layout {x.layout} has no strides"
    return None


def triton_slower(x: torch.Tensor) -> Reason:
    """Interpreted kernels are there for tests: ``auto`` never takes them."""
    return None if x.device.type == "cuda" else "interpreted, thousands of times slower"


# --- state -----------------------------------------------------------------------------------------------------------


def check_name(impl: str, where: str) -> None:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"{where}: impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")


_INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"
_DEFAULT = os.environ.get("GENCORE_BACKEND", "auto")
check_name(_DEFAULT, "environment variable GENCORE_BACKEND")


class _State(threading.local):
    def __init__(self) -> None:
        # An attribute of the instance, in every thread: a default on the class fails torch.compile's own guards.
        self.impl = _DEFAULT


_state = _State()
