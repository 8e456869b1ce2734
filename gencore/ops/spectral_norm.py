"""Spectral normalisation of one weight or of all weights of a network, with its power iteration, as one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Op
from gencore.ops._checks import check_device, check_floating, check_shape, compute_dtype


def spectral_norm(
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    *,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    training: bool = True,
    dim: int = 0,
    v_first: bool = True,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""``(W / sigma, sigma)`` with sigma = u\ :sup:`T` W v, after ``n_power_iterations`` of the power method.

    .. math::
        v \leftarrow W^T u / \lVert W^T u \rVert_2, \qquad u \leftarrow W v / \lVert W v \rVert_2, \qquad
        W_{SN} = W / (u^T W v)

    W is the weight as a matrix: ``dim`` gives its rows, all other dimensions, in their order, its columns. u and v
    are constants for the gradient, which is :math:`(G - \langle G, W_{SN} \rangle\, u v^T) / \sigma`; gradients of the
    weight exist to any order, through both results. Each call keeps its own u and v for its backward: two forwards
    before one backward are safe, and so is a broadcast of the buffers between them. A forward that runs inside a
    backward (activation checkpointing) finds u and v as the first one left them and does not iterate again.

    Args:
        weight: 1-d to 5-d; float32, float64, bfloat16 or float16.
        u, v: ``[rows]`` and ``[columns]``, of length 1 (as ``torch.nn.utils.parametrizations.spectral_norm`` keeps
            them), in the weight's dtype or float32. Training moves them, in place.
        n_power_iterations: 0 or more.
        eps: positive. A product W v or W^T u shorter than this leaves u or v as it was; a weight whose sigma is smaller
            than this in magnitude (all zeros, say) is returned as it is.
        training: iterate; otherwise u and v are taken as they are.
        dim: the dimension of the outputs: 0 for linear and convolution, 1 for transposed convolution.
        v_first: v, then u, in each iteration, as in the paper, in BigGAN and in ``torch.nn.utils.spectral_norm``;
            False: u, then v, as in ``torch.nn.utils.parametrizations.spectral_norm``.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        W / sigma, with shape, dtype and layout of the weight, and sigma, 0-d, float32 (float64 for float64).

    Raises:
        TypeError: an argument is not a tensor.
        RuntimeError: a shape, dtype or device that does not fit.
        ValueError: ``eps`` not positive, ``n_power_iterations`` negative.
        IndexError: ``dim`` out of range.

    Reference:
        Miyato, Kataoka, Koyama and Yoshida, "Spectral Normalization for Generative Adversarial Networks", 2018,
        algorithm 1.
    """
    where, options = "spectral_norm", (n_power_iterations, eps)
    dim = _validate(where, "", weight, u, v, *options, dim)
    iterations = _iterations(training, n_power_iterations)
    chosen = OP.select(impl, weight)
    normal, sigma = _run(chosen, [weight], [u], [v], iterations, eps, [dim], v_first)
    return normal[0], sigma[0]


def spectral_norm_list(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    *,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    training: bool = True,
    dims: int | Sequence[int] = 0,
    v_first: bool = True,
    impl: str = "auto",
) -> tuple[list[Tensor], list[Tensor]]:
    """:func:`spectral_norm` of all layers of a network in one call: ``([W / sigma, ...], [sigma, ...])``.

    The layers share one parallel region on the CPU and a few launches on a GPU, forward and backward, so that small
    layers do not pay for calls.

    Args:
        weights, us, vs: one of each a layer, all on one device and with one dtype of weights.
        dims: of each layer, or one for all.
        n_power_iterations, eps, training, v_first, impl: as in :func:`spectral_norm`, the same for all layers.

    Raises:
        ValueError: lists of different lengths; otherwise as :func:`spectral_norm`.
    """
    where = "spectral_norm_list"
    dims = [dims] * len(weights) if isinstance(dims, int) else list(dims)
    for name, values in (("us", us), ("vs", vs), ("dims", dims)):
        if len(values) != len(weights):
            raise ValueError(f"{where}: {name} must have {len(weights)} entries, one a weight; got {len(values)}")
    for i, layer in enumerate(zip(weights, us, vs, strict=True)):
        dims[i] = _validate(where, f"s[{i}]", *layer, n_power_iterations, eps, dims[i])
        check_device(where, f"weights[{i}]", weights[i], "weights[0]", weights[0])
        if weights[i].dtype != weights[0].dtype:
            raise RuntimeError(
                f"{where}: weights[{i}] must have the dtype of weights[0], {weights[0].dtype}; got {weights[i].dtype}"
            )
    if not weights:
        return [], []
    iterations = _iterations(training, n_power_iterations)
    chosen = LIST_OP.select(impl, weights[0])
    return _run(chosen, weights, us, vs, iterations, eps, dims, v_first)


def _validate(
    where: str, suffix: str, weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float, dim: int
) -> int:
    """Refuse what does not fit; ``dim``, not negative."""
    check_floating(where, f"weight{suffix}", weight)
    rank = weight.dim()
    if rank == 0:
        raise RuntimeError(f"{where}: weight{suffix} must have at least 1 dimension, got a scalar")
    if not -rank <= dim < rank:
        raise IndexError(
            f"{where}: dim must be between {-rank} and {rank - 1} for a weight of {rank} dimensions, got {dim}"
        )
    if eps <= 0:
        raise ValueError(f"{where}: eps must be positive, got {eps}")
    if n_power_iterations < 0:
        raise ValueError(f"{where}: n_power_iterations must not be negative, got {n_power_iterations}")
    rows = weight.shape[dim]
    for name, vector, length in (("u", u, rows), ("v", v, weight.numel() // max(rows, 1))):
        check_floating(where, name + suffix, vector)
        check_device(where, name + suffix, vector, f"weight{suffix}", weight)
        check_shape(where, name + suffix, vector, (length,))
        if vector.dtype not in (weight.dtype, compute_dtype(weight.dtype)):
            raise RuntimeError(
                f"{where}: {name}{suffix} must have the dtype of weight{suffix}, {weight.dtype}, or "
                f"{compute_dtype(weight.dtype)}; got {vector.dtype}"
            )
    return dim % rank


def _iterations(training: bool, n_power_iterations: int) -> int:
    # Inside a backward this forward is a repetition: the one that it repeats has moved u and v already.
    repeated = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
    return n_power_iterations if training and not repeated else 0


def _run(
    chosen: str,
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    iterations: int,
    eps: float,
    dims: Sequence[int],
    v_first: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    # Copies of u and v are what the backward keeps, so that the buffers may change before it runs.
    compute = compute_dtype(weights[0].dtype)
    layers = [
        reference.spectral_norm(
            w, u.detach().to(compute, copy=True), v.detach().to(compute, copy=True), iterations, eps, dim, v_first
        )
        for w, u, v, dim in zip(weights, us, vs, dims, strict=True)
    ]
    normal, sigma, new_us, new_vs = (list(values) for values in zip(*layers, strict=True))
    if iterations > 0:
        with torch.no_grad():
            for buffer, value in zip([*us, *vs], [*new_us, *new_vs], strict=True):
                buffer.copy_(value)
    return normal, sigma


# --- implementations -------------------------------------------------------------------------------------------------

OP = Op("spectral_norm", {})
LIST_OP = Op("spectral_norm_list", {})
