"""The accuracy rule: against a float64 oracle, at most twice the error of PyTorch's own op in the same dtype."""

from __future__ import annotations

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


def error(value: Tensor, oracle: Tensor) -> float:
    """The largest deviation, relative to |oracle| + rms(oracle), over the elements where the oracle is finite."""
    value, oracle = value.detach().double().cpu(), oracle.detach().double().cpu()
    finite = oracle.isfinite()
    if not finite.any():
        return 0.0
    value, oracle = value[finite], oracle[finite]
    scale = oracle.abs() + oracle.square().mean().sqrt() + torch.finfo(torch.float32).tiny
    return float(((value - oracle).abs() / scale).nan_to_num(nan=torch.inf).max())


def assert_accurate(
    name: str, value: Tensor, torchs: Tensor, oracle: Tensor, noisy: bool = False, slack: float = 1.0
) -> None:
    """``value`` is as near to ``oracle`` as the rule asks, has its shape, and is infinite or NaN only where it is.

    ``noisy``: it holds float32 random numbers, whatever its dtype. ``slack`` widens the rule, where several ops add up.
    """
    assert value.shape == oracle.shape, f"{name}: shape {tuple(value.shape)}, the oracle's is {tuple(oracle.shape)}"
    rounded = oracle.detach().to(value.dtype).cpu()
    wanted = torch.where(rounded.isfinite(), oracle.detach().cpu(), rounded.double())
    # Where PyTorch overflows and the oracle does not, its error is no yardstick.
    ours, theirs = error(value, wanted), error(torchs, torch.where(torchs.detach().cpu().isfinite(), wanted, torch.inf))
    allowed = slack * (2 * theirs + max(FLOOR[value.dtype], FLOOR[torch.float32] if noisy else 0.0))
    assert ours <= allowed, (
        f"{name}: error {ours:.3g}, PyTorch's is {theirs:.3g}, allowed {allowed:.3g} ({value.dtype})"
    )
    odd = ~rounded.isfinite()
    torch.testing.assert_close(
        value.detach().cpu()[odd], rounded[odd], rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{name}: {m}"
    )
