"""The self-attention layer of SAGAN and BigGAN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional
from torch import Tensor, nn

import gencore.functional as F
from gencore.nn.utils.parametrizations import copy_all, read_spectral_norm
from gencore.nn.utils.parametrizations import spectral_norm as add_spectral_norm
from gencore.ops._checks import check_floating, check_tensor
from gencore.reference._precision import without_autocast
from gencore.reference.self_attention import attention_weights, project

# Names of the four projections (query, key, value, out) and of the gate in released checkpoints.
_BIGGAN = ("theta", "phi", "g", "o")
_HUGGING_FACE = ("snconv1x1_theta", "snconv1x1_phi", "snconv1x1_g", "snconv1x1_o_conv")


class SelfAttention2d(nn.Module):
    """``gamma * out(attention(query(x), key(x), value(x))) + x`` for ``[B, C, H, W]``; gamma starts at 0.

    The four projections are 1x1 convolutions without bias. The defaults are those of SAGAN's released code and of
    BigGAN: keys and values max-pooled 2x2, queries and keys C/8 wide, values C/2. The paper's layer is
    ``SelfAttention2d(channels, pool=False, value_reduction=8)``.

    Args:
        channels: C; at least ``reduction`` and ``value_reduction``.
        reduction: queries and keys have ``channels // reduction`` channels.
        pool: max-pool keys and values 2x2.
        spectral_norm: normalise the four weights by their largest singular value
            (:func:`gencore.nn.utils.parametrizations.spectral_norm`).
        value_reduction: values have ``channels // value_reduction`` channels.
        impl: which implementation of :func:`gencore.functional.attention_block` and of the spectral norm runs.

    Raises:
        ValueError: fewer channels than a reduction, or a reduction that is not positive.

    Reference:
        Zhang, Goodfellow, Metaxas and Odena, "Self-Attention Generative Adversarial Networks", 2019, section 3; Brock,
        Donahue and Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", 2019.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 8,
        pool: bool = True,
        spectral_norm: bool = True,
        value_reduction: int = 2,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        for name, divisor in (("reduction", reduction), ("value_reduction", value_reduction)):
            if not 1 <= divisor <= channels:
                raise ValueError(f"SelfAttention2d: {name} must be between 1 and channels={channels}, got {divisor}")
        width, value_width = channels // reduction, channels // value_reduction
        self.channels, self.pool, self.impl = channels, pool, impl
        self.reduction, self.value_reduction = reduction, value_reduction
        self.query = nn.Conv2d(channels, width, 1, bias=False)
        self.key = nn.Conv2d(channels, width, 1, bias=False)
        self.value = nn.Conv2d(channels, value_width, 1, bias=False)
        self.out = nn.Conv2d(value_width, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))
        if spectral_norm:
            for layer in (self.query, self.key, self.value, self.out):
                add_spectral_norm(layer, impl=impl)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query.weight, self.key.weight, self.value.weight, self.out.weight)
        return F.attention_block(x, *weights, self.gamma, pool=self.pool, impl=self.impl)

    def attention_maps(self, x: Tensor, positions: Tensor) -> Tensor:
        """Where the queries at ``positions`` look: ``[B, P, H', W']``, each map summing to 1; H' = H // 2 if pooled.

        Only these P rows of the matrix of weights are made, in float32, and rounded to x's dtype. Looking changes
        nothing: u and v of spectral norm stay as they are, in training too.

        Args:
            x: ``[B, C, H, W]``.
            positions: ``[P, 2]``, integers: row and column of each query.

        Raises:
            TypeError: an argument is not a tensor.
            RuntimeError: x is not ``[B, C, H, W]``; ``positions`` has another shape or is not integer.
            IndexError: a position lies outside of x.
        """
        where = "SelfAttention2d.attention_maps"
        check_floating(where, "x", x)
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise RuntimeError(f"{where}: x must have shape [B, {self.channels}, H, W], got {tuple(x.shape)}")
        check_tensor(where, "positions", positions)
        fractional = positions.dtype.is_floating_point or positions.dtype.is_complex or positions.dtype == torch.bool
        if positions.dim() != 2 or positions.shape[1] != 2 or fractional:
            raise RuntimeError(
                f"{where}: positions must be integers of shape [P, 2], got {positions.dtype} of shape "
                f"{tuple(positions.shape)}"
            )
        size, positions = x.shape[2:], positions.long()  # uint8 would be a mask
        if ((positions < 0) | (positions >= positions.new_tensor(size))).any():
            raise IndexError(f"{where}: positions must lie in {tuple(size)}, got {positions.tolist()}")
        w_query, w_key = (_as_in_evaluation(layer) for layer in (self.query, self.key))
        chosen = x[:, :, positions[:, 0], positions[:, 1]]  # [B, C, P]
        key = project(x, w_key)
        key = torch.nn.functional.max_pool2d(key, 2) if self.pool else key
        weights = without_autocast(attention_weights)((w_query.flatten(1) @ chosen).mT, key.flatten(2).mT)
        return weights.to(x.dtype).unflatten(-1, key.shape[2:])

    def load_biggan(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
        """Load BigGAN-PyTorch's ``theta``, ``phi``, ``g``, ``o`` (with ``u0`` where there is one) and ``gamma``.

        Args:
            state_dict: the checkpoint. prefix: of the layer's keys, such as ``"blocks.3.1."``.

        Raises:
            KeyError: a key is missing. RuntimeError: a shape does not fit. Then nothing is loaded.
        """
        self._load(state_dict, prefix, _BIGGAN)

    def load_huggingface(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
        """Load pytorch-pretrained-BigGAN's ``snconv1x1_theta``, ``_phi``, ``_g``, ``_o_conv`` and ``gamma``.

        Arguments and errors as in :meth:`load_biggan`, with a prefix such as ``"generator.layers.8."``.
        """
        self._load(state_dict, prefix, _HUGGING_FACE)

    def to_biggan(self, prefix: str = "") -> dict[str, Tensor]:
        """What :meth:`load_biggan` reads, with u one step of the power method further; ``sv0`` is 1."""

        def normalised(weight: Tensor, u: Tensor, v: Tensor) -> dict[str, Tensor]:
            return {"weight": weight, "u0": u[None], "sv0": weight.new_ones(1)}

        return self._save(prefix, _BIGGAN, normalised) | {f"{prefix}gamma": self.gamma.detach().clone()}

    def to_huggingface(self, prefix: str = "") -> dict[str, Tensor]:
        """What :meth:`load_huggingface` reads."""

        def normalised(weight: Tensor, u: Tensor, v: Tensor) -> dict[str, Tensor]:
            return {"weight_orig": weight, "weight_u": u, "weight_v": v}

        return self._save(prefix, _HUGGING_FACE, normalised) | {f"{prefix}gamma": self.gamma.detach().clone()[None]}

    def _load(self, state_dict: Mapping[str, Tensor], prefix: str, names: tuple[str, str, str, str]) -> None:
        values: list[tuple[Tensor, Tensor]] = [(self.gamma, state_dict[f"{prefix}gamma"].reshape(()))]
        for layer, name in zip((self.query, self.key, self.value, self.out), names, strict=True):
            values += read_spectral_norm(layer, state_dict, f"{prefix}{name}.")
        copy_all(values)

    def _save(
        self, prefix: str, names: tuple[str, str, str, str], normalised: Callable[..., dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for layer, name in zip((self.query, self.key, self.value, self.out), names, strict=True):
            known: Any = getattr(layer, "parametrizations", None)
            if known is None:
                tensors = {"weight": layer.weight}
            else:
                tensors = normalised(known.weight.original, known.weight[0]._u, known.weight[0]._v)
            state |= {f"{prefix}{name}.{key}": tensor.detach().clone() for key, tensor in tensors.items()}
        return state

    def extra_repr(self) -> str:
        return f"{self.channels}, reduction={self.reduction}, pool={self.pool}, value_reduction={self.value_reduction}"


def _as_in_evaluation(layer: nn.Module) -> Tensor:
    """The layer's weight, without an iteration of spectral norm."""
    modes = [(module, module.training) for module in layer.modules()]
    layer.eval()
    try:
        return cast(Tensor, layer.weight)
    finally:
        for module, training in modes:
            module.training = training
