"""Losses of VAEs and GANs: pure functions on logits.

Every VAE term is summed over the pixels of a sample and returned one value a sample; :func:`elbo_loss` then takes the
mean over the batch. (A mean over pixels would silently weigh the KL term up by their number.) Every GAN loss takes the
discriminator's logits, never its sigmoid, and goes through softplus, so that no logarithm of a rounded zero occurs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# --- variational autoencoders ----------------------------------------------------------------------------------------


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    r"""-log p(x | z) for pixels that are Bernoulli with probability sigmoid(logits).

    Args:
        logits: ``[N, ...]``, any real numbers.
        target: same shape, in [0, 1].

    Returns:
        ``[N]`` in nats, summed over a sample's pixels.

    Raises:
        ValueError: if the shapes differ.

    Reference:
        Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, appendix C.1.
    """
    _check_shapes("bernoulli_nll", logits, target)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).sum(1)


def gaussian_nll(mean: Tensor, target: Tensor, *, sigma: float = 1.0) -> Tensor:
    r"""-log N(target; mean, sigma^2 I) = sum of ((x - mean) / sigma)^2 / 2 + log sigma + log(2 pi) / 2.

    Args:
        mean, target: ``[N, ...]``, equal shapes.
        sigma: the decoder's standard deviation (not its variance), positive.

    Returns:
        ``[N]`` in nats, summed over a sample's pixels.

    Raises:
        ValueError: if the shapes differ or ``sigma`` is not positive.

    Reference:
        Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, appendix C.2.
    """
    _check_shapes("gaussian_nll", mean, target)
    if sigma <= 0:
        raise ValueError(f"gaussian_nll: sigma must be positive, got {sigma}")
    constant = math.log(sigma) + 0.5 * math.log(2 * math.pi)
    return (0.5 * ((target - mean) / sigma).square() + constant).flatten(1).sum(1)


def elbo_loss(nll: Tensor, kl: Tensor, *, beta: float = 1.0) -> Tensor:
    """The negative evidence lower bound, mean over the batch of ``nll + beta * kl``.

    Args:
        nll: ``[N]``, from :func:`bernoulli_nll` or :func:`gaussian_nll`.
        kl: ``[N]``, from :func:`gencore.functional.reparameterize_kl`.
        beta: weight of the divergence; 1 is the bound itself, 0 a plain autoencoder with noise.

    Raises:
        ValueError: if the shapes differ.

    Reference:
        Higgins et al., "beta-VAE", 2017, equation 4.
    """
    _check_shapes("elbo_loss", nll, kl)
    return (nll + beta * kl).mean()


# --- generative adversarial networks ---------------------------------------------------------------------------------


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))), D = sigmoid(logit). Goodfellow et al. 2014, equation 1."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def minimax_generator(fake: Tensor) -> Tensor:
    """E log(1 - D(G(z))): its gradient with respect to the logit, -D, vanishes where D rejects. Ibid., equation 1."""
    return -F.softplus(fake).mean()


def non_saturating_generator(fake: Tensor) -> Tensor:
    """-E log D(G(z)): its gradient with respect to the logit is D - 1. Ibid., section 3."""
    return F.softplus(-fake).mean()


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E (D(x) - 1)^2 / 2 + E D(G(z))^2 / 2. Mao et al., "Least Squares GANs", 2017, equation 9."""
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def least_squares_generator(fake: Tensor) -> Tensor:
    """E (D(G(z)) - 1)^2 / 2. Ibid., equation 9."""
    return 0.5 * (fake - 1).square().mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))). Lim and Ye, "Geometric GAN", 2017."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E f(G(z)) - E f(x), for a critic f kept Lipschitz. Arjovsky et al., "Wasserstein GAN", 2017, algorithm 1."""
    return fake.mean() - real.mean()


def wasserstein_generator(fake: Tensor) -> Tensor:
    """-E f(G(z)); also the generator's side of the hinge loss. Ibid., algorithm 1."""
    return -fake.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""E (||grad_x f(x)||_2 - 1)^2 at points drawn uniformly on the segments from fake to real.

    The critic must treat samples one by one (no batch norm), and offer second derivatives.

    Args:
        critic: from ``[N, ...]`` to one value a sample.
        real, fake: ``[N, ...]``, equal shapes; no gradient flows to them.
        generator: where the positions on the segments come from.

    Returns:
        A scalar, to be weighted (by 10 in the paper) and added to the critic's loss.

    Raises:
        ValueError: if the shapes differ.

    Reference:
        Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, equation 3.
    """
    _check_shapes("gradient_penalty", real, fake)
    position = torch.rand(
        (len(real), *[1] * (real.dim() - 1)), dtype=real.dtype, device=real.device, generator=generator
    )
    between = torch.lerp(fake.detach(), real.detach(), position).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def drift_penalty(real: Tensor) -> Tensor:
    """E f(x)^2: keeps a critic's values, which its loss leaves free up to a constant, from wandering off.

    Karras et al., "Progressive Growing of GANs", 2018, appendix A.1, with weight 0.001.
    """
    return real.square().mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    r"""E ||grad_x D(x)||_2^2 on real images, to be weighted by gamma / 2.

    Args:
        discriminator: from ``[N, ...]`` to one logit a sample, with second derivatives.
        real: ``[N, ...]``; no gradient flows to it.

    Returns:
        A scalar.

    Reference:
        Mescheder, Geiger and Nowozin, "Which Training Methods for GANs do actually Converge?", 2018, equation 9.
    """
    images = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def path_lengths(images: Tensor, styles: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""||J_w^T y||_2 for images y of white noise: how far an image moves when its style does.

    The noise is divided by sqrt(height * width), and the square is averaged over the layers that the style enters, so
    that lengths of different networks compare.

    Args:
        images: ``[N, C, H, W]``, computed from ``styles``.
        styles: ``[N, layers, W]``, one style a layer.
        generator: where the noise comes from.

    Returns:
        ``[N]``, differentiable.

    Raises:
        ValueError: if the shapes do not fit together.

    Reference:
        Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020, section 3.2 and appendix B.
    """
    if images.dim() != 4 or styles.dim() != 3 or len(images) != len(styles):
        raise ValueError(
            "path_lengths: images must be [N, C, H, W] and styles [N, layers, W] of one N, got "
            f"{tuple(images.shape)} and {tuple(styles.shape)}"
        )
    noise = torch.randn(images.shape, dtype=images.dtype, device=images.device, generator=generator)
    noise = noise / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum(), styles, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def path_length_penalty(lengths: Tensor, mean: Tensor, *, decay: float = 0.01) -> tuple[Tensor, Tensor]:
    """E (length - a)^2, with a the running mean of all lengths so far.

    Args:
        lengths: ``[N]``, of :func:`path_lengths`.
        mean: a scalar tensor, a before this batch.
        decay: the weight of this batch in the new a.

    Returns:
        The penalty, to be weighted (by 2), and the new a, which carries no gradient.

    Reference:
        Ibid., equation 4.
    """
    lengths = lengths.to(torch.promote_types(lengths.dtype, mean.dtype))  # of 16 bits under autocast
    mean = mean.lerp(lengths.detach().mean().to(mean.dtype), decay)
    return (lengths - mean).square().mean(), mean


def _penalty(matrix: Tensor, diagonal: bool) -> Tensor:
    gram = matrix @ matrix.mT
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return (gram - identity if diagonal else gram * (1 - identity)).square().sum()


def _tall_penalty(matrix: Tensor, diagonal: bool) -> Tensor:
    """As :func:`_penalty`, from ||W^T W||_F^2 = ||W W^T||_F^2 and the filters' lengths, which are the diagonal. With
    many more filters than a filter has entries, little of the norm is there: nothing is lost by subtracting it."""
    lengths = matrix.square().sum(1)
    diagonals = 2 * lengths.sum() - len(lengths) if diagonal else lengths.square().sum()
    return (matrix.mT @ matrix).square().sum() - diagonals


def orthogonal_penalty(weights: Iterable[Tensor], *, diagonal: bool = False) -> Tensor:
    r"""sum over the weights of ||W W^T o (1 - I)||_F^2: how far their filters are from being orthogonal.

    The lengths of the filters stay free, as BigGAN wants it; ``diagonal=True`` is the plain form, ||W W^T - I||_F^2,
    which also wants them to be 1. The gradient is the formula's, 4 (W W^T o (1 - I)) W. BigGAN's released code adds
    half of that to the gradients by hand, so that its weight of 1e-4 is a weight of 5e-5 here.

    Args:
        weights: each ``[outputs, ...]``, a filter for each output; vectors (biases, gains) are passed over.
        diagonal: include the diagonal.

    Returns:
        A scalar, to be weighted (by 1e-4 in the paper) and added to the loss. The products of a weight with itself have
        the size of its narrow side: W W^T has the same norm as W^T W.

    Raises:
        ValueError: there is no weight of two or more dimensions.

    Reference:
        Brock, Lim, Ritchie and Weston, "Neural Photo Editing with Introspective Adversarial Networks", 2017; Brock,
        Donahue and Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", 2019, equations 2
        and 3.
    """
    total: Tensor | None = None
    for weight in weights:
        if weight.dim() < 2:
            continue
        matrix = weight.flatten(1)
        penalty = _tall_penalty(matrix, diagonal) if len(matrix) > 4 * matrix.shape[1] else _penalty(matrix, diagonal)
        total = penalty if total is None else total + penalty
    if total is None:
        raise ValueError("orthogonal_penalty: there is no weight of two or more dimensions")
    return total


@dataclass(frozen=True)
class GANLoss:
    """Both sides of an adversarial game: ``discriminator(real_logits, fake_logits)`` and ``generator(fake_logits)``."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


GAN_LOSSES = {
    "minimax": GANLoss(logistic_discriminator, minimax_generator),
    "non_saturating": GANLoss(logistic_discriminator, non_saturating_generator),
    "least_squares": GANLoss(least_squares_discriminator, least_squares_generator),
    "hinge": GANLoss(hinge_discriminator, wasserstein_generator),
    "wasserstein": GANLoss(wasserstein_discriminator, wasserstein_generator),
}


def gan_loss(name: str) -> GANLoss:
    """The pair of losses called ``name``: a key of ``GAN_LOSSES``.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in GAN_LOSSES:
        raise ValueError(f"gan_loss: name must be one of {', '.join(GAN_LOSSES)}; got {name!r}")
    return GAN_LOSSES[name]


def _check_shapes(where: str, a: Tensor, b: Tensor) -> None:
    # Broadcasting here would be a silently wrong loss.
    if a.shape != b.shape:
        raise ValueError(f"{where}: both arguments must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
