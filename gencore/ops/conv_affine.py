"""A convolution and an affine map of its channels, in float32 in 16 bits too: a batch norm in evaluation, folded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gencore.ops import conv
from gencore.ops._autocast import autocast
from gencore.ops._checks import compute_dtype
from gencore.ops.conv_checks import check_epilogue, find_geometry
from gencore.ops.conv_core import CONVOLUTION, output_channels
from gencore.ops.conv_replay import remember


def conv_affine(
    name: str,
    input: Tensor,
    weight: Tensor,
    *geometry: Any,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    impl: str,
    depends_on: tuple[Sequence[Tensor | None], tuple[Any, ...]] | None = None,
) -> Tensor | None:
    """``activation(scale conv(input) + shift + residual)``, without gradients; ``name`` is ``"conv1d"`` to
    ``"conv_transpose3d"``. None where ``impl`` is plain PyTorch in 16 bits, which would round scale and shift: the norm
    then is the better one after the convolution.

    Args:
        input, weight, residual: as for the function of that name, with a batch.
        geometry: its other positional arguments after the bias, all of them.
        scale, shift: ``[O]``, float32 (float64 for float64).
        activation, negative_slope, impl: as for that function.
        depends_on: tensors and settings that make weight, scale, shift and the rest: of a weight at rest the call is
            noted under them, for :func:`gencore.ops.conv_replay.recall`.

    Raises:
        What that function raises.
    """
    input, weight, residual = autocast(input, weight, residual)
    impl = conv.OPS[name].select(impl, input, weight, None, *geometry)
    if impl == "reference":
        if compute_dtype(input.dtype) != input.dtype:
            return None
        return getattr(conv, name)(
            input,
            weight,
            shift,
            *geometry,
            scale=scale,
            residual=residual,
            activation=activation,
            negative_slope=negative_slope,
            impl=impl,
        )
    _, *sizes, groups, transposed = find_geometry(name, input, weight, None, *geometry)
    channels = output_channels(weight, groups, transposed)
    check_epilogue(name, input, channels, sizes[-1], None, residual, activation, None)
    arguments: tuple[Any, ...] = (*sizes, groups, transposed, activation, float(negative_slope))
    if impl == "cpu" and residual is None and depends_on is not None:
        remember(input, *depends_on, weight, shift, scale, *arguments)
    return CONVOLUTION(input, weight, shift, residual, None, scale, *arguments, impl)
