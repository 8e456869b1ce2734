"""The self-attention block of SAGAN and BigGAN: projections, attention, output projection, gated residual."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional
from torch import Tensor

from gencore import reference
from gencore.dispatch import Implementation, Op, Reason, cpu_refusal, is_named, triton_refusal, triton_slower
from gencore.ops._autocast import autocast
from gencore.ops._checks import check_device, check_floating
from gencore.ops._library import define
from gencore.ops.conv import conv2d
from gencore.ops.self_attention import self_attention
from gencore.reference.self_attention import project


def attention_block(
    x: Tensor,
    w_query: Tensor,
    w_key: Tensor,
    w_value: Tensor,
    w_out: Tensor,
    gamma: Tensor,
    *,
    pool: bool = False,
    scale: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    r"""``gamma w_out(attention(w_query x, w_key x, w_value x)) + x`` over the positions of a feature map.

    All projections are 1x1 convolutions. Gradients of all tensors exist to any order; gamma = 0 gives x bit for bit (in
    the reference, but for negative zeros and for x that are not finite), and its own gradient. Under ``torch.autocast``
    every tensor is taken in the dtype of autocast.

    Args:
        x: ``[B, C, H, W]``; float32, float64, bfloat16 or float16; contiguous or channels_last.
        w_query, w_key: ``[d, C]`` or ``[d, C, 1, 1]``. w_value: ``[dv, C]``. w_out: ``[C, dv]``.
        gamma: one number, ``[]`` or ``[1]``, in x's dtype.
        pool: max-pool keys and values 2x2 (an odd last row or column is left out), as SAGAN's and BigGAN's released
            code does and the paper does not.
        scale: factor of the scores.
        impl: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :mod:`gencore.dispatch`. The one that is named
            runs the projections too; ``"auto"`` leaves those to PyTorch on a GPU and in float16.

    Returns:
        ``[B, C, H, W]``, in x's dtype and layout.

    Raises:
        TypeError: an argument is not a tensor.
        RuntimeError: shapes, dtypes or devices that do not fit; C, H, W, d or dv is 0; ``pool`` where H or W is 1.

    Reference:
        Zhang, Goodfellow, Metaxas and Odena, "Self-Attention Generative Adversarial Networks", 2019, section 3.
    """
    x, w_query, w_key, w_value, w_out, gamma = autocast(x, w_query, w_key, w_value, w_out, gamma)
    _validate(x, w_query, w_key, w_value, w_out, gamma, pool)
    chosen = OP.select(impl, x)
    if chosen == "reference":
        return reference.attention_block(x, w_query, w_key, w_value, w_out, gamma, pool, scale)
    width, others = w_query.shape[0], w_key.shape[0] + w_value.shape[0]
    # One reading of x for the three projections, and one pooling for two of them.
    weights = torch.cat([_image(w_query), _image(w_key), _image(w_value)])
    for_projections = chosen if is_named(impl) or (chosen == "cpu" and x.dtype != torch.float16) else "reference"
    query, rest = _project(x, weights, for_projections).split([width, others], 1)
    if pool:
        rest = torch.nn.functional.max_pool2d(rest, 2)
    key, value = rest.split([w_key.shape[0], w_value.shape[0]], 1)
    o = self_attention(query.flatten(2).mT, key.flatten(2).mT, value.flatten(2).mT, scale=scale, impl=chosen)
    # Back to a feature map, in the layout in which the attention has left it.
    o = o.mT.unflatten(2, x.shape[2:])
    return _GATE(x, _project(o, w_out, for_projections), gamma, chosen)


def _image(weight: Tensor) -> Tensor:
    return weight.reshape(*weight.shape[:2], 1, 1)


def _project(x: Tensor, weight: Tensor, chosen: str) -> Tensor:
    # Without autocast, which the tensors have followed already.
    with torch.autocast(x.device.type, enabled=False):
        if chosen == "reference" or x.numel() == 0:
            return project(x, weight)
        return conv2d(x, _image(weight), impl=chosen)


def _validate(
    x: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, w_out: Tensor, gamma: Tensor, pool: bool
) -> None:
    where = "attention_block"
    check_floating(where, "x", x)
    if x.dim() != 4:
        raise RuntimeError(f"{where}: x must have 4 dimensions, [B, C, H, W], got shape {tuple(x.shape)}")
    if 0 in x.shape[1:]:
        raise RuntimeError(f"{where}: x must have channels, height and width of 1 at least, got shape {tuple(x.shape)}")
    named = {"w_query": w_query, "w_key": w_key, "w_value": w_value, "w_out": w_out, "gamma": gamma}
    for name, value in named.items():
        check_floating(where, name, value)
        check_device(where, name, value, "x", x)
        if value.dtype != x.dtype:
            raise RuntimeError(f"{where}: {name} must have x's dtype {x.dtype}, got {value.dtype}")
    if gamma.numel() != 1 or gamma.dim() > 1:
        raise RuntimeError(f"{where}: gamma must have shape () or (1,), got {tuple(gamma.shape)}")
    channels = x.shape[1]
    for name, weight in (("w_query", w_query), ("w_key", w_key), ("w_value", w_value)):
        _check_projection(name, weight, None, channels)
    if w_key.shape[0] != w_query.shape[0]:
        raise RuntimeError(
            f"{where}: w_key must have as many rows as w_query, {w_query.shape[0]}; got shape {tuple(w_key.shape)}"
        )
    _check_projection("w_out", w_out, channels, w_value.shape[0])
    if pool and min(x.shape[2:]) < 2:
        raise RuntimeError(
            f"{where}: pool=True needs a height and width of 2 at least, got x of shape {tuple(x.shape)}"
        )


def _check_projection(name: str, weight: Tensor, rows: int | None, columns: int) -> None:
    fits = weight.dim() in (2, 4) and weight.shape[1] == columns and all(n == 1 for n in weight.shape[2:])
    fits = fits and weight.shape[0] > 0
    if not fits or rows not in (None, weight.shape[0]):
        wanted = "rows > 0" if rows is None else rows
        raise RuntimeError(
            f"attention_block: {name} must have shape [{wanted}, {columns}] or [{wanted}, {columns}, 1, 1], "
            f"got {tuple(weight.shape)}"
        )


# --- implementations -------------------------------------------------------------------------------------------------


def _gate(x: Tensor, o: Tensor, gamma: Tensor) -> Tensor:
    """``x + gamma o``; x itself where gamma is 0, whatever o is (0 times infinity would be NaN, and -0 + 0 is 0)."""
    y = torch.empty_like(x)
    if gamma.device.type == "cpu" and gamma.item() == 0:
        return y.copy_(x)
    torch.addcmul(x, o, gamma, out=y)
    return y if gamma.device.type == "cpu" else torch.where(gamma == 0, x, y)


def _cpu_refusal(x: Tensor, *args: object, **kwargs: object) -> Reason:
    return cpu_refusal(x)


def _triton_refusal(x: Tensor, *args: object, **kwargs: object) -> Reason:
    return triton_refusal(x)


OP = Op(
    "attention_block",
    {
        "triton": Implementation(_triton_refusal, lambda x, *args, **kwargs: triton_slower(x)),
        "cpu": Implementation(_cpu_refusal),
    },
)

# --- registration ----------------------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[1:3])


def _differentiate(ctx: Any, grad: Tensor) -> Any:
    o, gamma = ctx.saved_tensors
    return grad, grad * gamma, (grad * o).sum().reshape(gamma.shape), None


_GATE = define(
    "gated_residual(Tensor x, Tensor o, Tensor gamma, str impl) -> Tensor",
    {"cpu": _gate, "triton": _gate},
    lambda x, o, gamma, impl: torch.empty_like(x),
    setup_context=_save,
    backward=_differentiate,
)
