"""Models that serve: their weights stay what they are, so that not even a look at them is needed."""

from __future__ import annotations

from itertools import chain
from typing import TypeVar

from torch import nn

from gencore.ops.conv_packing import put_to_rest, wake

Model = TypeVar("Model", bound=nn.Module)


def freeze(model: Model) -> Model:
    """Put ``model`` in evaluation mode and its parameters and buffers to rest, for inference on the CPU; in place.

    Convolutions and linear layers keep what they make of a weight from call to call. Whether the weight is still the
    same they ask of its version counter and, since changes through ``weight.data`` do not move that, of a hash of the
    whole weight, which for one image takes as long as reading it for the convolution. Of a frozen model they look at
    64 places of each tensor. In-place operations, optimisers, ``load_state_dict`` and whatever replaces or changes all
    of a tensor are noticed as ever. Only a change of a few elements through ``.data`` may go unnoticed: call ``freeze``
    again after one, or change the weight itself under ``torch.no_grad()``.

    Results do not change by a bit. Nothing is copied; gradients may be computed as ever. Under
    ``torch.inference_mode`` tensors have no version counters: those made under it are not put to rest.

    Args:
        model: any module. Layers that are not gencore's come to no harm.

    Returns:
        ``model`` itself.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        put_to_rest(tensor)
    return model.eval()


def unfreeze(model: Model) -> Model:
    """Undo :func:`freeze`, in place; the model stays in evaluation mode."""
    for tensor in chain(model.parameters(), model.buffers()):
        wake(tensor)
    return model
