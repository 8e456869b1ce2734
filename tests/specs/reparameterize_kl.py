"""``reparameterize_kl``: samples, PyTorch's own version, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from gencore import functional as F
from gencore.reference.philox import philox_4x32, philox_normal
from tests.opspec import ErrorInput, OpSpec, Sample


def samples() -> list[Sample]:
    def make(name: str, *shape: int, spread: float = 1.0, **options: Any) -> Sample:
        generator = torch.Generator().manual_seed(7)
        mu, logvar = (torch.randn(shape, dtype=torch.float64, generator=generator) * s for s in (1.0, spread))
        return Sample(name, {"mu": mu, "logvar": logvar}, options, seed=11)

    # Around every threshold of exp(logvar / 2) and exp(logvar) in float32, up to where the first overflows.
    logvar = torch.tensor([-300.0, -104.0, -20.0, -1e-4, 0.0, 1e-4, 20.0, 88.0, 88.5, 90.0, 120.0, 176.5, 177.0, 177.2])
    extremes = {"mu": torch.linspace(-2, 2, 14).double().view(14, 1), "logvar": logvar.double().view(14, 1)}
    return [
        make("plain", 5, 96),
        make("image", 2, 3, 5, 7),
        make("odd", 3, 67),
        make("evaluation", 4, 33, sample=False),
        make("one_element", 1, 1),
        make("volume", 2, 3, 2, 3, 4),
        make("long_row", 2, 4500),
        make("wide_variance", 4, 64, spread=6.0),
        Sample("extremes", extremes, seed=11, smooth=False),
        make("empty_batch", 0, 8),
        make("empty_latent", 3, 0),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    shape = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5).map(tuple) | st.tuples(st.just(2), st.just(4099)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mu, logvar = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    return Sample("drawn", {"mu": mu, "logvar": logvar}, {"sample": draw(st.booleans())}, seed=draw(st.integers(0, 99)))


def composite(
    tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None
) -> tuple[Tensor, Tensor]:
    """What a VAE writes by hand, with the divergence summed in float32 at least, and gencore's noise."""
    mu, logvar = tensors["mu"], tensors["logvar"]
    assert mu is not None
    assert logvar is not None
    wide = torch.promote_types(mu.dtype, torch.float32)
    kl = -0.5 * (1 + logvar.to(wide) - mu.to(wide).pow(2) - logvar.to(wide).exp()).flatten(1).sum(1)
    if not options.get("sample", True):
        return mu.clone(), kl
    drawn = torch.randint(
        2**63 - 1, (1,), generator=torch.Generator(mu.device).manual_seed(seed or 0), device=mu.device
    )
    noise = philox_normal(drawn, mu.shape[0], mu[:1].numel()).view(mu.shape)
    return (mu + torch.exp(0.5 * logvar) * noise).to(mu.dtype), kl


def errors() -> list[ErrorInput]:
    x = torch.randn(3, 4)

    def torch_version(mu: Any, logvar: Any) -> Any:
        return torch.normal(torch.lerp(mu, logvar, 0.5), torch.ones(()))

    def case(name: str, mu: Any, logvar: Any, message: str) -> ErrorInput:
        return ErrorInput(
            name,
            lambda impl: F.reparameterize_kl(mu, logvar, impl=impl),
            lambda: torch_version(mu, logvar),
            message,
        )

    return [
        case("shape", x, torch.randn(3, 5), r"logvar must have shape \(3, 4\), got \(3, 5\)"),
        case("dtype", x, x.double(), r"logvar must have mu's dtype torch.float32, got torch.float64"),
        case("integer", x.long(), x.long(), r"mu must have a floating-point dtype, got torch.int64"),
        case("not_a_tensor", [1.0, 2.0], x, r"mu must be a Tensor, got list"),
        case("device", x, torch.randn(3, 4, device="meta"), r"mu is on cpu and logvar is on meta"),
        ErrorInput(
            "one_dimension",
            lambda impl: F.reparameterize_kl(x[0], x[0], impl=impl),
            lambda: torch.mm(x[0], x[0]),
            r"mu must be \[N, ...\] with at least 2 dimensions, got \(4,\)",
        ),
    ]


def large(device: str, impl: str) -> None:
    """2^31 + 2^20 elements: the rows past 2^31 must be right in values and in noise."""
    columns = 1 << 20
    rows = (1 << 11) + 1
    mu = torch.zeros((rows, columns), dtype=torch.bfloat16, device=device)
    mu[-1] = 1.0
    generator = torch.Generator(device).manual_seed(3)
    z, kl = F.reparameterize_kl(mu, mu, generator=generator, impl=impl)
    seed = torch.randint(2**63 - 1, (1,), generator=torch.Generator(device).manual_seed(3), device=device)
    for row in (0, rows - 1):
        counter = torch.arange(16, device=device) + 16 * row * (columns // 64)
        words = philox_4x32(seed, counter)
        u, t = words[0].double() * 2.0**-32 + 2.0**-33, words[1].double()
        t = torch.where(t >= 2.0**31, t - 2.0**32, t) * 2.0**-31
        noise = (-2 * u.log()).sqrt() * torch.cos(torch.pi * t)
        value = float(row > 0)
        wanted = (value + torch.tensor(value / 2).exp() * noise).to(torch.bfloat16)
        torch.testing.assert_close(z[row, :16], wanted, rtol=2**-7, atol=2**-8)
    divergence = 0.5 * (torch.tensor(1.0).exp() - 1.0).item() * columns
    torch.testing.assert_close(kl[[0, -1]].cpu(), torch.tensor([0.0, divergence]), rtol=1e-5, atol=1e-5)


SPEC = OpSpec(
    function=F.reparameterize_kl,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("mu", "logvar"),
    layout=("mu", "logvar"),
    noisy=("output 0", "gradient of logvar"),
    errors=errors,
    large=large,
    large_bytes=11 << 30,
)
