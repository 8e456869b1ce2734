"""What is particular to ``reparameterize_kl``: its random numbers."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from gencore import functional as F
from gencore.extension import EXTENSION
from gencore.reference.philox import philox_4x32, philox_normal

needs_extension = pytest.mark.skipif(not EXTENSION.loaded, reason="the C++ extension was not built")
IMPLS = ["reference", pytest.param("cpu", marks=needs_extension)]


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        # The known answers that the generator's authors publish with it (philox4x32-10).
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ],
)
def test_philox_gives_the_published_words(counter: int, seed: int, words: tuple[int, ...]) -> None:
    result = philox_4x32(torch.tensor([seed]), torch.tensor([counter]))
    assert tuple(int(w) for w in result) == words


@needs_extension
@pytest.mark.parametrize("seed", [0, 1, 2**62 + 12345, 2**63 - 1])
def test_the_kernel_draws_the_reference_stream(seed: int) -> None:
    out = torch.empty(37, 1000)
    torch.ops.gencore_c.philox_normal(torch.tensor([seed]), 37, out)
    torch.testing.assert_close(out, philox_normal(torch.tensor([seed]), 37, 1000), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_noise_is_standard_normal_and_independent(impl: str) -> None:
    zeros = torch.zeros(512, 2048)
    noise, _ = F.reparameterize_kl(zeros, zeros, generator=torch.Generator().manual_seed(0), impl=impl)
    assert stats.kstest(noise.flatten().numpy()[::7], "norm").pvalue > 1e-3
    assert abs(noise.mean()) < 5 / noise.numel() ** 0.5
    assert abs(noise.var() - 1) < 5 * (2 / noise.numel()) ** 0.5
    # Neighbours, the two halves of a Box-Muller pair, counters and rows are uncorrelated.
    flat = noise.flatten()
    for lag in (1, 16, 32, 64, 2048):
        assert abs((flat[:-lag] * flat[lag:]).mean()) < 5 / noise.numel() ** 0.5, f"lag {lag}"
    assert noise.abs().max() < 7


@pytest.mark.parametrize("impl", IMPLS)
def test_seeds(impl: str) -> None:
    x = torch.zeros(4, 100)

    def draw(generator: torch.Generator | None) -> torch.Tensor:
        return F.reparameterize_kl(x, x, generator=generator, impl=impl)[0]

    generator = torch.Generator().manual_seed(3)
    first, second = draw(generator), draw(generator)
    assert not torch.equal(first, second), "a generator must move on from call to call"
    assert torch.equal(first, draw(torch.Generator().manual_seed(3)))
    torch.manual_seed(9)
    default = draw(None)
    torch.manual_seed(9)
    assert torch.equal(default, draw(None))


@pytest.mark.parametrize("impl", IMPLS)
def test_evaluation_draws_nothing(impl: str) -> None:
    x = torch.randn(4, 100)
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    z, _ = F.reparameterize_kl(x, x, generator=generator, sample=False, impl=impl)
    assert torch.equal(z, x)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_stays_nan(impl: str) -> None:
    mu, logvar = torch.zeros(3, 5), torch.zeros(3, 5)
    mu[0, 0] = logvar[1, 1] = torch.nan
    z, kl = F.reparameterize_kl(mu, logvar, impl=impl)
    assert z.isnan().nonzero().tolist() == [[0, 0], [1, 1]]
    assert kl.isnan().tolist() == [True, True, False]


@needs_extension
def test_raw_kernels_check_their_arguments() -> None:
    """``torch.ops.gencore_c`` can be called by anybody: a wrong size is refused, never read past."""
    x, seed = torch.zeros(4, 8), torch.zeros(1, dtype=torch.int64)
    raw = torch.ops.gencore_c.reparameterize_kl
    good = {"mu": x, "logvar": x, "seed": seed, "sample": True, "z": torch.empty(4, 8), "kl": torch.empty(4)}
    raw(**good)
    for name, bad in (
        ("logvar", torch.zeros(4, 7)),
        ("z", torch.empty(4, 8, dtype=torch.float64)),
        ("z", torch.empty(8, 4).t()),
        ("kl", torch.empty(3)),
        ("kl", torch.empty(4, dtype=torch.bfloat16)),
        ("seed", torch.zeros(0, dtype=torch.int64)),
        ("seed", torch.zeros(1)),
        ("mu", torch.zeros(4, 8, dtype=torch.int32)),
    ):
        with pytest.raises(RuntimeError):
            raw(**(good | {name: bad}))


@pytest.mark.parametrize("impl", IMPLS)
def test_an_unused_infinite_divergence_leaves_the_gradient_alone(impl: str) -> None:
    mu, logvar = torch.zeros(2, 40), torch.full((2, 40), 100.0, requires_grad=True)
    z, kl = F.reparameterize_kl(mu, logvar, generator=torch.Generator().manual_seed(1), impl=impl)
    assert kl.isinf().all()
    (grad,) = torch.autograd.grad(z.sum(), logvar)
    torch.testing.assert_close(grad, 0.5 * z.detach(), rtol=1e-5, atol=0)
