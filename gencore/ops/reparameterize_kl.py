"""Fused reparameterisation and KL divergence: the layer between a VAE's encoder and decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Implementation, Op, cpu_refusal, triton_refusal, triton_slower
from gencore.ops._checks import check_floating, check_same, compute_dtype
from gencore.ops._library import define, differentiate, triton_kernel


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    generator: torch.Generator | None = None,
    sample: bool = True,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Draw from a diagonal Gaussian and take its KL divergence from N(0, I), in one pass.

    .. math::
        z = \mu + e^{\mathrm{logvar}/2}\,\varepsilon, \qquad
        \mathrm{kl}_n = \tfrac12 \sum_d \left(e^{\mathrm{logvar}_{nd}} + \mu_{nd}^2 - 1 - \mathrm{logvar}_{nd}\right)

    The noise comes from Philox 4x32-10 inside the kernel, is never stored, and is drawn again in the backward. One seed
    gives the same noise in every implementation and memory format. Gradients of both outputs exist to any order.

    Args:
        mu: mean, ``[N, ...]``, at least 2-d; float32, float64, bfloat16 or float16, any strides.
        logvar: logarithm of the variance; shape, dtype and device of ``mu``. ``exp`` follows IEEE: above 88.7 the
            divergence is infinite in float32, ``z`` is finite up to 177.
        generator: where the 64-bit seed is drawn from (one number a call); the default generator of the device if None.
        sample: False gives ``z = mu`` (evaluation) and draws nothing.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        ``z``, shape, dtype and layout of ``mu``; and ``kl``, ``[N]`` in nats, summed over all dimensions but the first,
        float32 (float64 for float64 input).

    Raises:
        TypeError: an argument is not a tensor.
        RuntimeError: shapes, dtypes or devices differ, the dtype is not floating point, or ``mu`` has fewer than 2
            dimensions.

    Reference:
        Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, section 2.4 and appendix B.
    """
    check_floating("reparameterize_kl", "mu", mu)
    check_same("reparameterize_kl", "logvar", logvar, "mu", mu)
    if mu.dim() < 2:
        raise RuntimeError(f"reparameterize_kl: mu must be [N, ...] with at least 2 dimensions, got {tuple(mu.shape)}")
    chosen = OP.select(impl, mu, logvar)
    seed = _draw_seed(mu.device, generator) if sample else _no_seed(mu.device)
    if chosen == "reference":
        return reference.reparameterize_kl(mu, logvar, seed, sample)
    return _FORWARD(mu, logvar, seed, sample, chosen)


def _draw_seed(device: torch.device, generator: torch.Generator | None) -> Tensor:
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device, generator=generator)


def _no_seed(device: torch.device) -> Tensor:
    return torch.zeros((1,), dtype=torch.int64, device=device)


# --- implementations -------------------------------------------------------------------------------------------------


def _like(result: Tensor, like: Tensor) -> Tensor:
    """``result``, contiguous, in the layout of ``like``."""
    return result if like.is_contiguous() else torch.empty_like(like).copy_(result)


def _forward_kernel(call: Any) -> Any:
    def forward(mu: Tensor, logvar: Tensor, seed: Tensor, sample: bool) -> tuple[Tensor, Tensor]:
        z = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device)
        kl = torch.empty((mu.shape[0],), dtype=compute_dtype(mu.dtype), device=mu.device)
        call()(mu.contiguous(), logvar.contiguous(), seed, sample, z, kl)
        return _like(z, mu), kl

    return forward


def _backward_kernel(call: Any) -> Any:
    def backward(
        grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, sample: bool
    ) -> tuple[Tensor, Tensor]:
        grad_mu = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device)
        grad_logvar = torch.empty_like(grad_mu)
        dense = [t.contiguous() for t in (grad_z, grad_kl, mu, logvar)]
        call()(*dense, seed, sample, grad_mu, grad_logvar)
        return _like(grad_mu, mu), _like(grad_logvar, mu)

    return backward


_forward_kernels = {
    "cpu": _forward_kernel(lambda: torch.ops.gencore_c.reparameterize_kl.default),
    "triton": _forward_kernel(triton_kernel("reparameterize_kl", "reparameterize_kl")),
}
_backward_kernels = {
    "cpu": _backward_kernel(lambda: torch.ops.gencore_c.reparameterize_kl_backward.default),
    "triton": _backward_kernel(triton_kernel("reparameterize_kl", "reparameterize_kl_backward")),
}

OP = Op(
    "reparameterize_kl",
    {
        "triton": Implementation(
            lambda mu, *args, **kwargs: triton_refusal(mu), lambda mu, *args, **kwargs: triton_slower(mu)
        ),
        "cpu": Implementation(lambda mu, *args, **kwargs: cpu_refusal(mu)),
    },
)

# --- registration ----------------------------------------------------------------------------------------------------


def _fake_forward(mu: Tensor, logvar: Tensor, seed: Tensor, sample: bool, impl: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mu), mu.new_empty((mu.shape[0],), dtype=compute_dtype(mu.dtype))


def _fake_backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, sample: bool, impl: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mu), torch.empty_like(mu)


def _save_forward(ctx: Any, inputs: Any, output: Any) -> None:
    mu, logvar, seed, ctx.sample, ctx.impl = inputs
    ctx.save_for_backward(mu, logvar, seed)


def _differentiate_forward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> Any:
    mu, logvar, seed = ctx.saved_tensors
    return (*_BACKWARD(grad_z, grad_kl, mu, logvar, seed, ctx.sample, ctx.impl), None, None, None)


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    grad_z, grad_kl, mu, logvar, seed, ctx.sample, _ = inputs
    ctx.save_for_backward(grad_z, grad_kl, mu, logvar, seed)


def _differentiate_backward(ctx: Any, grad_grad_mu: Tensor, grad_grad_logvar: Tensor) -> Any:
    *inputs, seed = ctx.saved_tensors
    grads = differentiate(
        lambda gz, gk, mu, logvar: reference.reparameterize_kl_backward(gz, gk, mu, logvar, seed, ctx.sample),
        inputs,
        (grad_grad_mu, grad_grad_logvar),
    )
    return (*grads, None, None, None)


_FORWARD = define(
    "reparameterize_kl(Tensor mu, Tensor logvar, Tensor seed, bool sample, str impl) -> (Tensor z, Tensor kl)",
    _forward_kernels,
    _fake_forward,
    setup_context=_save_forward,
    backward=_differentiate_forward,
)
_BACKWARD = define(
    "reparameterize_kl_backward(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor seed, bool sample, "
    "str impl) -> (Tensor grad_mu, Tensor grad_logvar)",
    _backward_kernels,
    _fake_backward,
    setup_context=_save_backward,
    backward=_differentiate_backward,
)
