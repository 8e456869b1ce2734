"""Attention over the positions of a feature map: softmax(scale Q K^T) V without the matrix of its weights."""

from __future__ import annotations

from torch import Tensor

from gencore import reference
from gencore.dispatch import Op
from gencore.ops._checks import check_device, check_floating


def self_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float = 1.0, impl: str = "auto") -> Tensor:
    r"""``softmax(scale query key^T) value``, in blocks: no N x M matrix in memory, forward or backward.

    .. math::
        o_i = \sum_j \frac{\exp(c\, q_i \cdot k_j)}{\sum_l \exp(c\, q_i \cdot k_l)}\, v_j

    The running maximum, the sum and the result of each query are held in float32 (float64 for float64) while the keys
    pass by in blocks. The backward keeps query, key, value, the result and one number a query (the logarithm of the
    sum), and works the weights out again, block by block. Second derivatives come from plain PyTorch, with the matrix.

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
    _validate(query, key, value)
    OP.select(impl, query, key, value)
    return reference.self_attention(query, key, value, scale)


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


# --- implementations -------------------------------------------------------------------------------------------------

OP = Op("self_attention", {})
