"""Losses against values worked out by hand or in closed form."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from gencore import losses
from gencore.functional import reparameterize_kl

DOUBLE = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=DOUBLE)


def close(actual, expected, **tolerance):
    torch.testing.assert_close(
        actual, torch.as_tensor(expected, dtype=DOUBLE), **({"rtol": 0, "atol": 1e-9} | tolerance)
    )


# --- variational autoencoders ----------------------------------------------------------------------------------------


def test_bernoulli_nll_by_hand():
    logits = tensor(0.9, 0.2, 0.6).logit()
    close(losses.bernoulli_nll(logits[None], tensor(1, 0, 1)[None]), [0.8393296907])


def test_bernoulli_nll_is_summed_per_sample():
    logits = torch.randn(3, 2, 4, 4, dtype=DOUBLE)
    target = (torch.rand(3, 2, 4, 4) > 0.5).double()
    close(losses.bernoulli_nll(logits, target), -Bernoulli(logits=logits).log_prob(target).sum((1, 2, 3)))


def test_bernoulli_nll_of_extreme_logits():
    close(losses.bernoulli_nll(tensor(800, -800)[None], tensor(0, 1)[None]), [1600.0])


def test_gaussian_nll():
    mean, target = torch.randn(2, 3, 5, 4, dtype=DOUBLE)
    for sigma in (0.3, 1.0, 2.0):
        close(losses.gaussian_nll(mean, target, sigma=sigma), -Normal(mean, sigma).log_prob(target).sum((1, 2)))
    close(losses.gaussian_nll(tensor(1)[None], tensor(3)[None], sigma=2.0), [0.5 + math.log(2) + 0.9189385332])


@pytest.mark.parametrize(
    ("mu", "var", "expected"),
    [
        ([0], [1], 0),
        ([1], [1], 0.5),
        ([0], [math.e], 0.3591409142),
        ([0], [1 / math.e], 0.1839397206),
        ([2], [0.25], 2.3181471806),
        ([1, -2, 0.5], [0.5, 2, 1], 2.875),
    ],
)
def test_gaussian_divergence(mu, var, expected):
    _, kl = reparameterize_kl(tensor(*mu)[None], tensor(*var).log()[None], sample=False)
    close(kl, [expected])
    close(kl, kl_divergence(Normal(tensor(*mu), tensor(*var).sqrt()), Normal(tensor(0), tensor(1))).sum()[None])


def test_elbo_loss():
    nll, kl = tensor(1, 3), tensor(10, 30)
    close(losses.elbo_loss(nll, kl), 22.0)
    close(losses.elbo_loss(nll, kl, beta=0.1), 4.0)


def test_elbo_bounds_the_evidence():
    # Two latent states: log P(x) = ELBO + KL(q || posterior), exactly.
    prior, likelihood, q = tensor(0.5, 0.5), tensor(0.9, 0.2), tensor(0.6, 0.4)
    evidence = (prior * likelihood).sum()
    posterior = prior * likelihood / evidence
    elbo = -losses.elbo_loss(-(q * likelihood.log()).sum()[None], (q * (q / prior).log()).sum()[None])
    close(elbo, -0.7271269880)
    close(elbo + (q * (q / posterior).log()).sum(), evidence.log())


# --- generative adversarial networks ---------------------------------------------------------------------------------


def test_undecided_discriminator_pays_log_4():
    close(losses.logistic_discriminator(tensor(0, 0), tensor(0)), math.log(4))


def test_optimal_discriminator_pays_log_4_less_twice_the_jensen_shannon_divergence():
    p, q = tensor(0.36, 0.48, 0.16), tensor(1, 1, 1) / 3
    logits = (p / (p + q)).logit().requires_grad_()
    # An expectation under p is a mean over samples of which a share p falls on each value.
    real, fake = (logits.repeat_interleave(torch.round(w * 75).long()) for w in (p, q))
    loss = losses.logistic_discriminator(real, fake)
    close(loss, 1.3413746403)
    close(loss, math.log(4) - 2 * 0.0224598604)
    close(torch.autograd.grad(loss, logits)[0], [0.0, 0.0, 0.0])


def test_generator_gradients():
    logit = tensor(0.01).logit().requires_grad_()
    close(torch.autograd.grad(losses.minimax_generator(logit), logit)[0], [-0.01])
    close(torch.autograd.grad(losses.non_saturating_generator(logit), logit)[0], [-0.99])


def test_hinge():
    close(losses.hinge_discriminator(tensor(0.3, 2), tensor(-1.5, 0.4)), 1.05)
    close(losses.gan_loss("hinge").generator(tensor(-1.5, 0.4)), 0.55)


def test_least_squares():
    close(losses.least_squares_discriminator(tensor(1, 3), tensor(0, 2)), 0.5 * (2 + 2))
    close(losses.least_squares_generator(tensor(0, 3)), 0.5 * 2.5)


def test_wasserstein():
    close(losses.wasserstein_discriminator(tensor(1, 3), tensor(0, 1)), -1.5)
    close(losses.wasserstein_generator(tensor(0, 1)), -0.5)


@pytest.mark.parametrize("name", losses.GAN_LOSSES)
@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_gan_losses_stay_finite(name, logit):
    loss = losses.gan_loss(name)
    x = torch.full((4,), logit, requires_grad=True)
    total = loss.discriminator(x, x) + loss.generator(x)
    total.backward()
    assert total.isfinite()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", losses.GAN_LOSSES)
def test_gan_losses_pull_the_right_way(name):
    loss = losses.gan_loss(name)
    real, fake, made = (torch.zeros(3, requires_grad=True) for _ in range(3))
    loss.discriminator(real, fake).backward()
    loss.generator(made).backward()
    assert (real.grad < 0).all()  # descent raises the logits of real images
    assert (fake.grad > 0).all() or name == "least_squares"  # whose target for fakes is the 0 they stand at
    assert (made.grad < 0).all()  # and the generator raises those of its own


def test_gradient_penalty_of_a_linear_critic():
    weight = torch.randn(3 * 4 * 4, dtype=DOUBLE, requires_grad=True)
    real, fake = torch.randn(2, 5, 3, 4, 4, dtype=DOUBLE)
    penalty = losses.gradient_penalty(lambda x: x.flatten(1) @ weight, real, fake)
    close(penalty, (weight.norm() - 1).square())
    (gradient,) = torch.autograd.grad(penalty, weight)
    close(gradient, 2 * (1 - 1 / weight.norm()) * weight)


def test_gradient_penalty_looks_between_the_samples():
    seen = []

    def critic(x):
        seen.append(x.detach())
        return x.square().sum((1, 2, 3)) / 2  # its gradient is x itself

    real, fake = torch.zeros(64, 1, 2, 2, dtype=DOUBLE), torch.ones(64, 1, 2, 2, dtype=DOUBLE)
    penalty = losses.gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(0))
    (x,) = seen
    assert (x == x[:, :, :1, :1]).all()  # one position a sample
    assert 0 <= x.min() < 0.1
    assert 0.9 < x.max() <= 1
    close(penalty, (x.flatten(1).norm(dim=1) - 1).square().mean())


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 1\)"):
        losses.bernoulli_nll(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        losses.gaussian_nll(torch.zeros(2, 3), torch.zeros(2, 3), sigma=0)
    with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(\)"):
        losses.elbo_loss(torch.zeros(2), torch.tensor(0.0))
    with pytest.raises(ValueError, match="got 'saturating'"):
        losses.gan_loss("saturating")


def test_orthogonal_penalty():
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    rows = weight.detach().flatten(1)
    products = torch.tensor([[float(a @ b) for b in rows] for a in rows], dtype=torch.float64)
    off = products - products.diag().diag()
    free = losses.orthogonal_penalty([weight, torch.randn(4)])
    torch.testing.assert_close(free, off.square().sum())
    plain = losses.orthogonal_penalty([weight], diagonal=True)
    torch.testing.assert_close(plain, off.square().sum() + (products.diag() - 1).square().sum())
    # Twice what the released code adds to the weights' gradients directly.
    (gradient,) = torch.autograd.grad(free, weight)
    torch.testing.assert_close(gradient.flatten(1), 4 * off @ rows)
    torch.testing.assert_close(losses.orthogonal_penalty([weight, weight]), 2 * free)
    assert losses.orthogonal_penalty([2 * torch.eye(3)]) == 0
    assert losses.orthogonal_penalty([2 * torch.eye(3)], diagonal=True) == 27
    with pytest.raises(ValueError, match="no weight of two or more dimensions"):
        losses.orthogonal_penalty([torch.randn(4)])


@pytest.mark.parametrize("diagonal", [False, True])
def test_orthogonal_penalty_of_many_short_filters(diagonal):
    """As with the large matrix of their products, which is not made."""
    weight = torch.randn(300, 7, dtype=torch.float64, requires_grad=True)
    products = weight @ weight.T
    wanted = (products - (torch.eye(300) if diagonal else products.diag().diag())).square().sum()
    penalty = losses.orthogonal_penalty([weight], diagonal=diagonal)
    torch.testing.assert_close(penalty, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(value, weight)[0] for value in (penalty, wanted)))
    short = weight.detach().float().requires_grad_()
    found = losses.orthogonal_penalty([short], diagonal=diagonal).double()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    made = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: made.append(x.numel()) or x, lambda x: x):
        losses.orthogonal_penalty([short], diagonal=diagonal)
    assert max(made) == short.numel()
