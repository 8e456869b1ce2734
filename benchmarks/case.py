"""What the benchmark of one op declares: one small file of :mod:`benchmarks.cases`, and nothing else to edit."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

import gencore.functional

MODES = ("forward", "forward+backward", "double backward")
LAYOUTS = ("contiguous", "channels_last")

Inputs = dict[str, Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Problem:
    """One size at which an op is timed.

    Attributes:
        name: as it stands in the tables, such as ``"64x128x32x32, training"``.
        sizes: whatever the case's own functions read.
        quick: belongs to the ``--quick`` selection.
        modes, layouts: where they differ from the case's.
    """

    name: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False
    modes: tuple[str, ...] | None = None
    layouts: tuple[str, ...] | None = None

    def __getitem__(self, key: str) -> Any:
        return self.sizes[key]


@dataclass(frozen=True)
class Cost:
    """The least that one call must do: floating-point operations, and bytes read and written once each."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Maker:
    """Builds input tensors of the wanted dtype, device and layout from one seed."""

    dtype: torch.dtype
    device: torch.device
    layout: str
    generator: torch.Generator

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """Activations and weights: ``scale`` times a standard normal plus ``shift``, in layout and dtype as wanted."""
        x = torch.randn(shape, generator=self.generator) * scale + shift
        return self.lay_out(x.to(self.device, self.dtype))

    def statistics(self, *shape: int, fill: float | None = None) -> Tensor:
        """Float32 vectors (running statistics, affine parameters): ``fill``, or uniform in (0.5, 1.5)."""
        x = torch.rand(shape, generator=self.generator) + 0.5 if fill is None else torch.full(shape, fill)
        return x.to(self.device)

    def lay_out(self, x: Tensor) -> Tensor:
        return lay_out(x, self.layout)


class Case(ABC):
    """The benchmark of one op: its sizes, inputs, plain PyTorch twin and least cost."""

    op: ClassVar[str]
    #: The smallest first: it is the one that the tests of the suite run.
    problems: ClassVar[tuple[Problem, ...]]
    #: Names of the inputs that gradients are taken of.
    differentiable: ClassVar[tuple[str, ...]]
    modes: ClassVar[tuple[str, ...]] = ("forward", "forward+backward")
    layouts: ClassVar[tuple[str, ...]] = ("contiguous",)
    #: Outputs (by position) that hang on random numbers, which the peers draw in their own way.
    random_outputs: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        """The tensors that ours and all peers are called with."""

    @abstractmethod
    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        """How gencore's function is called, without ``impl``."""

    @abstractmethod
    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        """The same in PyTorch, as most people write it."""

    @abstractmethod
    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        """The least operations and bytes of one call in ``mode``, for elements of ``itemsize`` bytes."""

    def ours(self, problem: Problem, inputs: Inputs, impl: str) -> Outputs:
        args, kwargs = self.arguments(problem, inputs)
        return as_tuple(getattr(gencore.functional, self.op)(*args, **kwargs, impl=impl))

    def reference(self, problem: Problem, inputs: Inputs) -> Outputs:
        """What parity is checked against, called in float64; and once in the benchmark's dtype, for its own error."""
        return self.ours(problem, inputs, "reference")

    def peers(self, problem: Problem) -> dict[str, Callable[[Inputs], Outputs]]:
        """Further ways to do it in PyTorch, by name; ``eager`` and its ``torch.compile`` are always there."""
        return {}

    def resolve(self, problem: Problem, inputs: Inputs, impl: str) -> str:
        """The implementation that runs when ``impl`` is asked for."""
        args, kwargs = self.arguments(problem, inputs)
        explanation = gencore.explain(self.op, *args, **kwargs, impl=impl)
        return explanation.chosen or impl


def lay_out(x: Tensor, layout: str) -> Tensor:
    """Images and volumes ``"channels_last"`` where that is ``layout``; everything else as it is."""
    if layout == "channels_last" and x.dim() in (4, 5):
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    return x


def as_tuple(outputs: Tensor | Outputs) -> Outputs:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def all_cases() -> dict[str, Case]:
    """Every case of :mod:`benchmarks.cases`, by op: each module there holds one as ``CASE``."""
    import benchmarks.cases as package

    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    cases = [importlib.import_module(f"benchmarks.cases.{name}").CASE for name in names]
    return {case.op: case for case in cases}
