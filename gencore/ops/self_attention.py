"""Attention over the positions of a feature map: softmax(scale Q K^T) V without the matrix of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gencore import reference
from gencore.dispatch import Implementation, Op, Reason, cpu_refusal, triton_refusal, triton_slower
from gencore.ops._autocast import autocast
from gencore.ops._checks import check_device, check_floating, compute_dtype
from gencore.ops._library import define, differentiate, triton_kernel
from gencore.processor import MKL_RUNS_AT_FULL_SPEED


def self_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float = 1.0, impl: str = "auto") -> Tensor:
    r"""``softmax(scale query key^T) value``, in blocks: no N x M matrix in memory, forward or backward.

    .. math::
        o_i = \sum_j \frac{\exp(c\, q_i \cdot k_j)}{\sum_l \exp(c\, q_i \cdot k_l)}\, v_j

    The running maximum, the sum and the result of each query are held in float32 (float64 for float64) while the keys
    pass by in blocks. The backward keeps query, key, value, the result and two numbers a query (the maximum and the
    sum), and works the weights out again, block by block. Second derivatives come from plain PyTorch, with the matrix.
    Under ``torch.autocast`` every tensor is taken in the dtype of autocast.

    Args:
        query: ``[..., N, d]``, one row a position; float32, float64, bfloat16 or float16. Any strides: a feature map
            ``[B, d, H, W]`` is passed as ``map.flatten(2).mT``, without a copy.
        key: ``[..., M, d]``, and value: ``[..., M, dv]``, with query's leading dimensions and dtype.
        scale: factor of the scores; 1 as in SAGAN, not 1/sqrt(d).
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`.

    Returns:
        ``[..., N, dv]`` in query's dtype. Without keys (M = 0) it is 0; with d = 0 all keys weigh the same.

    Raises:
        TypeError: an argument is not a tensor.
        RuntimeError: shapes, dtypes or devices that do not fit.

    Reference:
        Zhang, Goodfellow, Metaxas and Odena, "Self-Attention Generative Adversarial Networks", 2019, section 3; the
        order of the computation is that of Dao, Fu, Ermon, Rudra and Ré, "FlashAttention", 2022.
    """
    query, key, value = autocast(query, key, value)
    _validate(query, key, value)
    chosen = OP.select(impl, query, key, value)
    if chosen == "reference":
        return reference.self_attention(query, key, value, scale)
    if query.dim() == 3:
        return _FORWARD(query, key, value, float(scale), chosen)[0]
    flat = [x.reshape(_product(x.shape[:-2]), *x.shape[-2:]) for x in (query, key, value)]
    out = _FORWARD(*flat, float(scale), chosen)[0]
    return out.view(*query.shape[:-1], value.shape[-1])


def _validate(query: Tensor, key: Tensor, value: Tensor) -> None:
    where = "self_attention"
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_floating(where, name, x)
        check_device(where, name, x, "query", query)
        if x.dtype != query.dtype:
            raise RuntimeError(f"{where}: {name} must have query's dtype {query.dtype}, got {x.dtype}")
        if x.dim() < 2:
            raise RuntimeError(f"{where}: {name} must have at least 2 dimensions, got shape {tuple(x.shape)}")
    wanted = (*query.shape[:-2], key.shape[-2], query.shape[-1])
    if tuple(key.shape) != wanted:
        raise RuntimeError(
            f"{where}: key must have shape {_text(query, 'M', query.shape[-1])} for a query of shape "
            f"{tuple(query.shape)}, got {tuple(key.shape)}"
        )
    if tuple(value.shape[:-1]) != wanted[:-1]:
        raise RuntimeError(
            f"{where}: value must have shape {_text(query, key.shape[-2], 'dv')} for a key of shape "
            f"{tuple(key.shape)}, got {tuple(value.shape)}"
        )


def _text(query: Tensor, *last: object) -> str:
    return f"[{', '.join(str(n) for n in (*query.shape[:-2], *last))}]"


def _product(sizes: torch.Size) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


# --- implementations -------------------------------------------------------------------------------------------------


def _workable(x: Tensor) -> Tensor:
    """``[B, rows, columns]`` dense along its rows or its columns: a sequence, or a feature map seen as one."""
    return x if 1 in x.stride()[1:] or x.is_contiguous() else x.contiguous()


def _like(x: Tensor, *shape: int) -> Tensor:
    """Uninitialised memory that runs the way ``x`` does: along the columns, or along the rows as in a feature map."""
    if x.stride(2) != 1 and x.stride(1) == 1:
        return x.new_empty((shape[0], shape[2], shape[1])).mT
    return x.new_empty(shape)


def _forward_kernel(call: Any) -> Any:
    def forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        results = _results(query, value)
        call()(_workable(query), _workable(key), _workable(value), scale, *results)
        return results

    return forward


def _backward_kernel(call: Any) -> Any:
    def backward(
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        peaks: Tensor,
        inverse_totals: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = _gradients(query, key, value)
        if query.shape[0] * query.shape[1] * key.shape[1] * value.shape[2] == 0:
            return tuple(grad.zero_() for grad in grads)  # type: ignore[return-value]
        inputs = [_workable(x) for x in (grad_out, query, key, value, out)]
        call()(*inputs, peaks, inverse_totals, scale, *grads)
        return grads

    return backward


def _results(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, count, _ = query.shape
    peaks = query.new_empty((batch, count), dtype=compute_dtype(query.dtype))
    return _like(query, batch, count, value.shape[2]), peaks, torch.empty_like(peaks)


def _gradients(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query, *query.shape), _like(key, *key.shape), _like(value, *value.shape)


# A wider tile of queries does not fit beside the others.
_WIDEST = 256


def _triton_refusal(query: Tensor, *args: object, **kwargs: object) -> Reason:
    if query.shape[-1] > _WIDEST:
        return f"queries and keys are {query.shape[-1]} wide, the kernels take {_WIDEST} at most"
    return triton_refusal(query)


# On two cores with AVX-512 PyTorch was measured to be faster where the matrix of weights of one entry of the batch is
# smaller than the first, and stays in the cache (in training, and with MKL at home); and with MKL at home, where values
# are so wide that the products of matrices are all that counts: in training, and from the second width on in any case.
# So many weights in all cost no more than 32 MiB; beyond them, what was measured to be faster would be paid for in
# memory.
_FEW_WEIGHTS = 1 << 17
_WIDE_VALUES, _WIDEST_VALUES = 256, 512
_MOST_WEIGHTS = 1 << 23


def _cpu_slower(query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> Reason:
    weights, width = query.shape[-2] * key.shape[-2], value.shape[-1]
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if weights < _FEW_WEIGHTS and (recorded or MKL_RUNS_AT_FULL_SPEED):
        return f"a matrix of {weights} weights stays in the cache"
    wide = width >= (_WIDE_VALUES if recorded else _WIDEST_VALUES)
    few = query.shape[:-2].numel() * weights <= _MOST_WEIGHTS
    if MKL_RUNS_AT_FULL_SPEED and query.dtype == torch.float32 and wide and few:
        return f"MKL is at home on this processor, and values of {width} leave little beside products of matrices"
    return None


OP = Op(
    "self_attention",
    {
        "triton": Implementation(_triton_refusal, lambda query, *args, **kwargs: triton_slower(query)),
        "cpu": Implementation(lambda query, *args, **kwargs: cpu_refusal(query), _cpu_slower),
    },
)

# --- registration ----------------------------------------------------------------------------------------------------


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, scale: float, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    return _results(query, value)


def _fake_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    peaks: Tensor,
    inverse_totals: Tensor,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(query, key, value)


def _save_forward(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, value, ctx.scale, ctx.impl = inputs
    out, peaks, inverse_totals = output
    ctx.mark_non_differentiable(peaks, inverse_totals)
    ctx.save_for_backward(query, key, value, out, peaks, inverse_totals)


def _differentiate_forward(ctx: Any, grad_out: Tensor, _peaks: Any, _inverse_totals: Any) -> Any:
    return *_BACKWARD(grad_out, *ctx.saved_tensors, ctx.scale, ctx.impl), None, None


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    grad_out, query, key, value, *_, ctx.scale, _ = inputs
    ctx.save_for_backward(grad_out, query, key, value)


def _differentiate_backward(ctx: Any, *grad_outputs: Any) -> Any:
    # The result, the peaks and the totals are worked out again from query, key and value, which thus carry their
    # derivatives too.
    def formula(*inputs: Any) -> tuple[Tensor, ...]:
        grad_out, query, key, value = inputs
        return reference.self_attention_backward(grad_out, query, key, value, ctx.scale)

    return *differentiate(formula, ctx.saved_tensors, grad_outputs), *[None] * 5


_FORWARD = define(
    "self_attention(Tensor query, Tensor key, Tensor value, float scale, str impl) -> (Tensor out, "
    "Tensor peaks, Tensor inverse_totals)",
    {
        "cpu": _forward_kernel(lambda: torch.ops.gencore_c.self_attention.default),
        "triton": _forward_kernel(triton_kernel("self_attention", "self_attention")),
    },
    _fake_forward,
    setup_context=_save_forward,
    backward=_differentiate_forward,
)
_BACKWARD = define(
    "self_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor peaks, "
    "Tensor inverse_totals, float scale, str impl) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)",
    {
        "cpu": _backward_kernel(lambda: torch.ops.gencore_c.self_attention_backward.default),
        "triton": _backward_kernel(triton_kernel("self_attention", "self_attention_backward")),
    },
    _fake_backward,
    setup_context=_save_backward,
    backward=_differentiate_backward,
)
