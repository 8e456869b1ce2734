"""Spectral normalisation of one weight or of all weights of a network, with its power iteration, as one op."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, islice
from typing import Any

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Implementation, Op, cpu_refusal, triton_refusal, triton_slower
from gencore.extension import EXTENSION
from gencore.ops._checkpointing import is_backward, note_step, regions_under_way, repeated_step
from gencore.ops._checks import check_device, compute_dtype
from gencore.ops._library import define, differentiate, is_watched, triton_kernel
from gencore.ops.spectral_norm_checks import are_plain, lengths, validate


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
    before one backward are safe, and so is a broadcast of the buffers between them. A call in training that activation
    checkpointing repeats takes u and v as the first one left them, whatever moved them since, and does not iterate.

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
        TypeError: an argument is not a tensor, or ``n_power_iterations`` no whole number.
        RuntimeError: a shape, dtype or device that does not fit; a compiled call that moves u and v and is repeated by
            activation checkpointing, which cannot be told what they were.
        ValueError: ``eps`` not positive or infinite, ``n_power_iterations`` negative.
        IndexError: ``dim`` out of range.

    Reference:
        Miyato, Kataoka, Koyama and Yoshida, "Spectral Normalization for Generative Adversarial Networks", 2018,
        algorithm 1.
    """
    where, options = "spectral_norm", (n_power_iterations, eps)
    dim = validate(where, "", weight, u, v, *options, dim)
    iterations = n_power_iterations if training else 0
    chosen = OP.select(impl, weight)
    normal, sigma = _run(chosen, [weight], [u], [v], iterations, eps, [dim], v_first, [True])
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
    written: Sequence[bool] | None = None,
    impl: str = "auto",
) -> tuple[list[Tensor], list[Tensor]]:
    """:func:`spectral_norm` of all layers of a network in one call: ``([W / sigma, ...], [sigma, ...])``.

    The layers share one call of the CPU's kernel and one launch on a GPU, forward and backward, so that small layers do
    not pay for calls.

    Args:
        weights, us, vs: one of each a layer, all on one device and with one dtype of weights.
        dims: of each layer, or one for all.
        written: for each layer, whether its W / sigma is wanted (None: all are). Without it, a weight is read for sigma
            alone: 1 / sigma can be the ``scale`` of a convolution of W.
        n_power_iterations, eps, training, v_first, impl: as in :func:`spectral_norm`, the same for all layers.

    Returns:
        W / sigma of the layers that are written, and sigma of all, both in the order of the layers.

    Raises:
        ValueError: lists of different lengths; otherwise as :func:`spectral_norm`.
    """
    where = "spectral_norm_list"
    dims = [dims] * len(weights) if isinstance(dims, int) else list(dims)
    written = [True] * len(weights) if written is None else list(written)
    lists: tuple[tuple[str, Sequence[object]], ...] = (("us", us), ("vs", vs), ("dims", dims), ("written", written))
    for name, values in lists:
        if len(values) != len(weights):
            raise ValueError(f"{where}: {name} must have {len(weights)} entries, one a weight; got {len(values)}")
    doubtful = 1 if are_plain(weights, us, vs, dims) else len(weights)  # one, for the settings
    for i, layer in enumerate(islice(zip(weights, us, vs, strict=True), doubtful)):
        dims[i] = validate(where, f"s[{i}]", *layer, n_power_iterations, eps, dims[i])
        if weights[i].device != weights[0].device or weights[i].dtype != weights[0].dtype:
            check_device(where, f"weights[{i}]", weights[i], "weights[0]", weights[0])
            raise RuntimeError(
                f"{where}: weights[{i}] must have the dtype of weights[0], {weights[0].dtype}; got {weights[i].dtype}"
            )
    if not weights:
        return [], []
    iterations = n_power_iterations if training else 0
    chosen = LIST_OP.select(impl, weights[0])
    return _run(chosen, weights, us, vs, iterations, eps, dims, v_first, written)


def _run(
    chosen: str,
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    iterations: int,
    eps: float,
    dims: Sequence[int],
    v_first: bool,
    written: Sequence[bool],
) -> tuple[list[Tensor], list[Tensor]]:
    """As the first call, which iterates and moves u and v, or as its repetition, which takes them from there."""
    compiling = torch.compiler.is_compiling()
    repeats = iterations > 0 and not compiling and is_backward()
    moved = repeated_step("spectral_norm") if repeats else None
    if moved is not None:
        us, vs = moved[::2], moved[1::2]
    iterations = 0 if repeats else iterations
    buffers = _paired(us, vs)
    normal, sigma, vectors = _call(chosen, weights, buffers, iterations, eps, dims, v_first, written)
    if iterations > 0:
        _store(vectors, buffers)
    regions = [] if compiling or not (iterations or repeats) else regions_under_way()
    if regions and iterations > 0:
        moved = list(vectors.split([x.numel() for x in buffers]))
    if regions and moved is not None:
        note_step(regions, moved)
    return normal, sigma


def _store(vectors: Tensor, buffers: list[Tensor]) -> None:
    """Moves u and v."""
    plain = vectors.is_cpu and EXTENSION.loaded and not is_watched() and not any(map(Tensor.is_inference, buffers))
    if plain and all(type(x) is Tensor and x.dtype == vectors.dtype for x in buffers):
        torch.ops.gencore_c.spectral_norm_store.default(vectors, buffers)
        torch.autograd.graph.increment_version(buffers)
        return
    with torch.no_grad():
        torch._foreach_copy_(buffers, list(vectors.split([x.numel() for x in buffers])))


def _call(
    chosen: str,
    weights: Sequence[Tensor],
    buffers: list[Tensor],
    iterations: int,
    eps: float,
    dims: Sequence[int],
    v_first: bool,
    written: Sequence[bool],
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Also u and v of all layers, one after another, after the iterations, in a tensor of their own."""
    if chosen != "reference":
        arguments = (iterations, float(eps), list(dims), v_first, list(written), chosen)
        normal, sigmas, vectors = _FORWARD(list(weights), buffers, *arguments)
        return normal, list(sigmas.unbind()), vectors
    # Copies of u and v are what the backward keeps, so that the buffers may change before it runs.
    compute = compute_dtype(weights[0].dtype)
    copies = [x.to(compute, copy=True) for x in buffers]
    normal, sigma, new = [], [], []
    for w, u, v, dim, wanted in zip(weights, copies[::2], copies[1::2], dims, written, strict=True):
        function = reference.spectral_norm if wanted else reference.power_iteration
        *ready, s, u, v = function(w, u, v, iterations, eps, dim, v_first)
        normal += ready
        sigma.append(s)
        new += [u, v]
    return normal, sigma, torch.cat(new)


def _paired(us: Sequence[Tensor], vs: Sequence[Tensor]) -> list[Tensor]:
    """u and v of each layer, one after another."""
    return [x for pair in zip(us, vs, strict=True) for x in pair]


# --- implementations -------------------------------------------------------------------------------------------------


def _forward_cpu(
    weights: list[Tensor],
    buffers: list[Tensor],
    n_power_iterations: int,
    eps: float,
    dims: list[int],
    v_first: bool,
    written: list[bool],
) -> tuple[list[Tensor], Tensor, Tensor]:
    _refuse_compiled_repetition(n_power_iterations)
    compute = compute_dtype(weights[0].dtype)
    if compute != weights[0].dtype:
        buffers = [x.to(compute) for x in buffers]
    call, rest = torch.ops.gencore_c.spectral_norm.default, (n_power_iterations, eps, dims, v_first, written)
    if all(w.is_contiguous() for w in weights):
        return call(weights, buffers, *rest)
    normal, sigma, vectors = call([w.contiguous() for w in weights], buffers, *rest)
    return _laid_out(normal, list(compress(weights, written))), sigma, vectors


def _forward_triton(
    weights: list[Tensor],
    buffers: list[Tensor],
    n_power_iterations: int,
    eps: float,
    dims: list[int],
    v_first: bool,
    written: list[bool],
) -> tuple[list[Tensor], Tensor, Tensor]:
    from gencore.kernels.spectral_norm import spectral_norm

    _refuse_compiled_repetition(n_power_iterations)
    dense = [w.contiguous() for w in weights]
    normal = [torch.empty_like(w) if wanted else w.new_empty(0) for w, wanted in zip(dense, written, strict=True)]
    vectors = torch.cat(buffers).to(compute_dtype(weights[0].dtype))
    sigma = vectors.new_empty((len(weights),))
    spectral_norm(dense, vectors, n_power_iterations, eps, dims, v_first, normal, sigma)
    return _laid_out(list(compress(normal, written)), list(compress(weights, written))), sigma, vectors


def _refuse_compiled_repetition(n_power_iterations: int) -> None:
    """Of a compiled graph: _run takes care of all others."""
    if n_power_iterations > 0 and is_backward():
        raise RuntimeError(
            "spectral_norm: activation checkpointing repeats a forward that torch.compile compiled, which would "
            "move u and v again; compile what is not checkpointed, or checkpoint what is not compiled"
        )


def _backward_kernel(call: Any) -> Any:
    def backward(
        grads: list[Tensor],
        grad_sigma: Tensor,
        weights: list[Tensor],
        sigma: Tensor,
        vectors: Tensor,
        eps: float,
        dims: list[int],
        written: list[bool],
    ) -> list[Tensor]:
        dense, given = [w.contiguous() for w in weights], iter(grads)
        dense_grads = [
            next(given).contiguous() if wanted else w.new_empty(0) for w, wanted in zip(weights, written, strict=True)
        ]
        results = [torch.empty_like(w) for w in dense]
        call()(dense_grads, grad_sigma.contiguous(), dense, sigma, vectors, eps, dims, results)
        return _laid_out(results, weights)

    return backward


def _laid_out(tensors: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """Each with the strides that ``torch.empty_like`` gives it, a copy only where they differ."""
    return [t if w.is_contiguous() else torch.empty_like(w).copy_(t) for t, w in zip(tensors, like, strict=True)]


def _first(weights: Tensor | list[Tensor]) -> Tensor:
    """What decides for a list decides by its first tensor: the others have the same device and dtype."""
    return weights if isinstance(weights, Tensor) else weights[0]


_IMPLEMENTATIONS = {
    "triton": Implementation(
        lambda weights, *args, **kwargs: triton_refusal(_first(weights)),
        lambda weights, *args, **kwargs: triton_slower(_first(weights)),
    ),
    "cpu": Implementation(lambda weights, *args, **kwargs: cpu_refusal(_first(weights))),
}
OP = Op("spectral_norm", _IMPLEMENTATIONS)
LIST_OP = Op("spectral_norm_list", _IMPLEMENTATIONS)

# --- registration ----------------------------------------------------------------------------------------------------


def _fake_forward(
    weights: list[Tensor],
    buffers: list[Tensor],
    n_power_iterations: int,
    eps: float,
    dims: list[int],
    v_first: bool,
    written: list[bool],
    impl: str,
) -> tuple[list[Tensor], Tensor, Tensor]:
    normal = [torch.empty_like(w) for w in compress(weights, written)]
    compute = compute_dtype(weights[0].dtype)
    sigma = weights[0].new_empty((len(weights),), dtype=compute)
    return normal, sigma, sigma.new_empty((sum(x.numel() for x in buffers),))


def _fake_backward(
    grads: list[Tensor],
    grad_sigma: Tensor,
    weights: list[Tensor],
    sigma: Tensor,
    vectors: Tensor,
    eps: float,
    dims: list[int],
    written: list[bool],
    impl: str,
) -> list[Tensor]:
    return [torch.empty_like(w) for w in weights]


def _save_forward(ctx: Any, inputs: Any, output: Any) -> None:
    weights, _, _, ctx.eps, ctx.dims, _, ctx.written, ctx.impl = inputs
    _, sigma, vectors = output
    ctx.mark_non_differentiable(vectors)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*weights, sigma, vectors)


def _differentiate_forward(ctx: Any, grads: list[Tensor | None], grad_sigma: Tensor, _vectors: Any) -> Any:
    *weights, sigma, vectors = ctx.saved_tensors
    given = [
        torch.zeros_like(w) if g is None else g for g, w in zip(grads, compress(weights, ctx.written), strict=True)
    ]
    grad_sigma = torch.zeros_like(sigma) if grad_sigma is None else grad_sigma
    rest = (ctx.eps, ctx.dims, ctx.written, ctx.impl)
    nothing: list[None] = [None] * (2 * len(weights))  # for the buffers
    return _BACKWARD(given, grad_sigma, weights, sigma, vectors, *rest), nothing, *[None] * 6


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    grads, grad_sigma, weights, _, vectors, ctx.eps, ctx.dims, ctx.written, _ = inputs
    ctx.save_for_backward(*grads, grad_sigma, *weights, vectors)


def _differentiate_backward(ctx: Any, grad_outputs: list[Tensor | None]) -> Any:
    # sigma is worked out again from the weights, which thus carry its derivative too.
    *inputs, vectors = ctx.saved_tensors
    count = sum(ctx.written)
    pairs = [lengths(weight, dim) for weight, dim in zip(inputs[count + 1 :], ctx.dims, strict=True)]
    vectors = vectors.split([n for pair in pairs for n in pair])

    def formula(*values: Any) -> list[Tensor]:
        given, grad_sigma, weights = iter(values[:count]), values[count], values[count + 1 :]
        return [
            reference.spectral_norm_backward(weight, u, v, next(given) if wanted else None, grad, ctx.eps, dim)
            for weight, u, v, wanted, grad, dim in zip(
                weights, vectors[::2], vectors[1::2], ctx.written, grad_sigma, ctx.dims, strict=True
            )
        ]

    results = differentiate(formula, inputs, grad_outputs)
    return results[:count], results[count], results[count + 1 :], *[None] * 6


_FORWARD = define(
    "spectral_norm(Tensor[] weights, Tensor[] buffers, int n_power_iterations, float eps, int[] dims, bool v_first, "
    "bool[] written, str impl) -> (Tensor[] normal, Tensor sigma, Tensor vectors)",
    {
        "cpu": _forward_cpu,
        "triton": _forward_triton,
    },
    _fake_forward,
    setup_context=_save_forward,
    backward=_differentiate_forward,
)
_BACKWARD = define(
    "spectral_norm_backward(Tensor[] grads, Tensor grad_sigma, Tensor[] weights, Tensor sigma, Tensor vectors, "
    "float eps, int[] dims, bool[] written, str impl) -> Tensor[]",
    {
        "cpu": _backward_kernel(lambda: torch.ops.gencore_c.spectral_norm_backward.default),
        "triton": _backward_kernel(triton_kernel("spectral_norm", "spectral_norm_backward")),
    },
    _fake_backward,
    setup_context=_save_backward,
    backward=_differentiate_backward,
)
