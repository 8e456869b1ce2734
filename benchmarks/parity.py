"""The gate before the clock: what does not compute the right thing gets no time.

Every output and gradient is compared with a float64 oracle on the very inputs that are timed. Ours may err at most
twice as much as plain PyTorch does in the same dtype; a peer has to compute the same thing, whatever its error.

The dtype ``"tf32"`` is float32 whose convolutions PyTorch has been told may be as inexact as TF32, on all sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.case import Case, Inputs, Outputs, Problem, lay_out

#: Errors below this many roundings of the dtype are never held against anybody.
FLOOR_ROUNDINGS = 4
#: A peer further than this from the oracle, relative to the largest value, computes something else.
PEER_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


_TF32_EPS = 2.0**-10


@contextmanager
def using_dtype(name: str) -> Iterator[torch.dtype]:
    """The dtype of that name, and PyTorch's switch for the convolutions of float32 as it says."""
    switch = torch.backends.mkldnn.conv
    before, switch.fp32_precision = switch.fp32_precision, "tf32" if name == "tf32" else "ieee"
    try:
        yield torch.float32 if name == "tf32" else getattr(torch, name)
    finally:
        switch.fp32_precision = before


def rounding(dtype: torch.dtype) -> float:
    """The distance from 1 to the next number that sums in ``dtype`` need to tell from it."""
    less_exact = dtype == torch.float32 and torch.backends.mkldnn.conv.fp32_precision == "tf32"
    return _TF32_EPS if less_exact else torch.finfo(dtype).eps


@dataclass(frozen=True)
class Verdict:
    """Largest error relative to the largest value, what was allowed, and the output in which the two are closest."""

    passed: bool
    error: float
    allowed: float
    where: str

    def __str__(self) -> str:
        return f"{self.where}: error {self.error:.1e}, allowed {self.allowed:.1e}"


def compute(
    function: Callable[[Inputs], Outputs],
    inputs: Inputs,
    differentiable: Sequence[str],
    mode: str,
    cotangents: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Outputs of ``function``, and what ``mode`` adds to them, by name.

    ``"forward+backward"`` adds the gradients of <outputs, cotangents>; ``"double backward"`` adds to these the
    gradients of the squared norm of the first one, which is the shape of a gradient penalty.
    """
    if mode == "forward":
        with torch.no_grad():
            return _named("output", function(inputs))
    names = list(differentiable)
    leaves = {name: x.detach().requires_grad_(name in names) for name, x in inputs.items()}
    wanted = [leaves[name] for name in names]
    twice = mode == "double backward"
    outputs = function(leaves)
    weights = [
        c.to(out.dtype) for c, out in zip(cotangents or make_cotangents(outputs, "contiguous"), outputs, strict=True)
    ]
    found = _named("output", tuple(out.detach() for out in outputs))
    grads = torch.autograd.grad(outputs, wanted, weights, create_graph=twice, materialize_grads=True)
    found |= {f"gradient of {n}": g.detach() for n, g in zip(names, grads, strict=True)}
    if twice:
        seconds = torch.autograd.grad(grads[0].square().sum(), wanted, materialize_grads=True)
        found |= {f"second gradient of {n}": g for n, g in zip(names, seconds, strict=True)}
    return found


def make_cotangents(outputs: Outputs, layout: str) -> list[Tensor]:
    """A fixed standard normal weight for every output, in its dtype.

    Its layout is that of the row, as the next layer of such a network would send it: PyTorch returns some outputs
    contiguous whatever came in.
    """
    generator = torch.Generator().manual_seed(1)
    return [lay_out(torch.randn(out.shape, generator=generator).to(out), layout) for out in outputs]


class Gate:
    """The oracle of one problem on one set of inputs; asked once for ours (each implementation) and for every peer."""

    def __init__(
        self, case: Case, problem: Problem, inputs: Inputs, modes: Sequence[str], layout: str = "contiguous"
    ) -> None:
        self._case, self._problem, self._inputs = case, problem, inputs
        self._mode = max(modes, key=lambda m: ("forward", "forward+backward", "double backward").index(m))
        self.cotangents: list[Tensor] | None = None  # the first run makes them
        reference = self._run(lambda x: case.reference(problem, x), self._copy())
        outputs = tuple(x for name, x in reference.items() if name.startswith("output"))
        self.cotangents = make_cotangents(outputs, layout)
        self._oracle = self._run(lambda x: case.reference(problem, x), self._copy(torch.float64))
        self._pytorch_error = {name: relative_error(reference[name], self._oracle[name]) for name in self._oracle}

    def ours(self, function: Callable[[Inputs], Outputs]) -> Verdict:
        """At most twice the error of the reference in the same dtype, in every output and gradient."""
        found = self._run(function, self._copy())
        verdicts = []
        for name, oracle in self._oracle.items():
            if name not in found:
                return Verdict(False, float("inf"), 0.0, f"{name} is missing")
            roundoff = FLOOR_ROUNDINGS * rounding(found[name].dtype)
            allowed = max(2 * self._pytorch_error[name], roundoff)
            error = relative_error(found[name], oracle)
            verdicts.append(Verdict(error <= allowed, error, allowed, name))
        return max(verdicts, key=lambda v: (not v.passed, v.error / v.allowed))

    def peer(self, function: Callable[[Inputs], Outputs]) -> Verdict:
        """Whether a peer computes the same outputs, but for those that hang on its own random numbers."""
        found = self._run(function, self._copy(), "forward")
        verdicts = [Verdict(True, 0.0, 1.0, "outputs are random")]
        for index, (name, value) in enumerate(found.items()):
            if index not in self._case.random_outputs:
                allowed = PEER_TOLERANCE[value.dtype]
                error = relative_error(value, self._oracle[name])
                verdicts.append(Verdict(error <= allowed, error, allowed, name))
        return max(verdicts, key=lambda v: (not v.passed, v.error / v.allowed))

    def _copy(self, dtype: torch.dtype | None = None) -> Inputs:
        """Fresh tensors each time: buffers such as running statistics are written to."""
        return {
            name: x.detach().clone() if dtype is None or not x.is_floating_point() else x.detach().to(dtype)
            for name, x in self._inputs.items()
        }

    def _run(self, function: Callable[[Inputs], Outputs], inputs: Inputs, mode: str | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        cotangents = None if mode == "forward" else self.cotangents
        return compute(function, inputs, self._case.differentiable, mode or self._mode, cotangents)


def relative_error(value: Tensor, oracle: Tensor) -> float:
    """Largest difference relative to the oracle's largest value (absolute where the oracle is zero throughout).

    Infinite where the shapes differ, or one side is not finite where the other is.
    """
    if value.shape != oracle.shape:
        return float("inf")
    if oracle.numel() == 0:
        return 0.0
    value, oracle = value.double(), oracle.double()
    finite = torch.isfinite(oracle)
    if not torch.equal(finite, torch.isfinite(value)):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = oracle[finite].abs().max().item() or 1.0
    return (value - oracle)[finite].abs().max().item() / scale


def _named(kind: str, outputs: Outputs) -> dict[str, Tensor]:
    return {f"{kind} {i}": out for i, out in enumerate(outputs)}
