"""The accuracy rule: against a float64 oracle, at most twice the error of PyTorch's own op in the same dtype.

One call is one throw of the dice: PyTorch's sum of three numbers may happen to be exact, and ours then errs "infinitely
more"; a sum within a rounding of zero may fall on either side of a ReLU's kink. So where a call breaks the rule, its
neighbours decide: the same call with every input moved a little, where all rounding falls out anew. The median of our
errors there is at most twice that of PyTorch's. A kernel that is wrong is wrong in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

# Relative to |value| + rms: what is forgiven even where PyTorch happens to be exact. Two correct kernels that round the
# same sum in another order differ by this much; a 16-bit result is rounded once, and its neighbour is as good. In
# float64 the oracle is no better than what it judges, and the two errors add up.
FLOOR = {
    torch.float64: 4096 * torch.finfo(torch.float64).eps,
    torch.float32: 4 * torch.finfo(torch.float32).eps,
    torch.bfloat16: 0.5 * torch.finfo(torch.bfloat16).eps,
    torch.float16: 0.5 * torch.finfo(torch.float16).eps,
}


# Where numbers of size 1 cancel, this much is left of them in float64, in the oracle as in what it judges.
CANCELLED = 2**-40


def error(value: Tensor, oracle: Tensor) -> float:
    """The largest deviation, relative to |oracle| + rms(oracle), over the elements where the oracle is finite."""
    exact_type = value.dtype == torch.float64
    value, oracle = value.detach().double().cpu(), oracle.detach().double().cpu()
    finite = oracle.isfinite()
    if not finite.any():
        return 0.0
    value, oracle = value[finite], oracle[finite]
    scale = oracle.abs() + oracle.square().mean().sqrt() + torch.finfo(torch.float32).tiny
    difference = (value - oracle).abs()
    if exact_type:
        difference = torch.where(difference < CANCELLED, 0.0, difference)
    return float((difference / scale).nan_to_num(nan=torch.inf).max())


@dataclass(frozen=True)
class Comparison:
    """One result (or gradient) of ours, of PyTorch's, and of the float64 oracle.

    Attributes:
        name: what it is.
        value, torchs, oracle: the three.
        noisy: it holds float32 random numbers, whatever its dtype.
        slack: widens the rule, where several ops add up.
    """

    name: str
    value: Tensor
    torchs: Tensor
    oracle: Tensor
    noisy: bool = False
    slack: float = 1.0

    def errors(self) -> tuple[float, float]:
        """Ours and PyTorch's; where PyTorch overflows and the oracle does not, its error is no yardstick."""
        wanted = torch.where(self._rounded.isfinite(), self.oracle.detach().cpu(), self._rounded.double())
        finite = torch.where(self.torchs.detach().cpu().isfinite(), wanted, torch.inf)
        return error(self.value, wanted), error(self.torchs, finite)

    def allowed(self, theirs: float) -> float:
        floor = max(FLOOR[self.value.dtype], FLOOR[torch.float32] if self.noisy else 0.0)
        return self.slack * (2 * theirs + floor)

    def assert_shape_and_infinities(self) -> None:
        """It has the oracle's shape, and is infinite or NaN only where that is."""
        value, rounded = self.value.detach().cpu(), self._rounded
        assert value.shape == rounded.shape, (
            f"{self.name}: shape {tuple(value.shape)}, the oracle's is {tuple(rounded.shape)}"
        )
        odd = ~rounded.isfinite()
        torch.testing.assert_close(
            value[odd], rounded[odd], rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{self.name}: {m}"
        )

    @property
    def _rounded(self) -> Tensor:
        return self.oracle.detach().to(self.value.dtype).cpu()


def assert_accurate(
    comparisons: Iterable[Comparison], neighbours: Callable[[], Iterable[Iterable[Comparison]]] | None = None
) -> None:
    """Each is as near to its oracle as the rule asks; ``neighbours()`` makes the same comparisons of nearby calls."""
    broken = {}
    for c in comparisons:
        c.assert_shape_and_infinities()
        ours, theirs = c.errors()
        if not ours <= c.allowed(theirs):
            broken[c.name] = (c, [(ours, theirs)])
    if broken and neighbours is not None:
        for nearby in neighbours():
            for c in nearby:
                if c.name in broken:
                    broken[c.name][1].append(c.errors())
    for c, errors in broken.values():
        ours, theirs = (median(e[i] for e in errors) for i in (0, 1))
        assert ours <= c.allowed(theirs), (
            f"{c.name}: error {ours:.3g}, PyTorch's is {theirs:.3g}, allowed {c.allowed(theirs):.3g} "
            f"({c.value.dtype}; median of {len(errors)} calls)"
        )
