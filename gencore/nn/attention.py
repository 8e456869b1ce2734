"""The self-attention layer of SAGAN and BigGAN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional
from torch import Tensor, nn

import gencore.functional as F
from gencore.nn.utils.parametrizations import load_spectral_norm
from gencore.nn.utils.parametrizations import spectral_norm as add_spectral_norm
from gencore.reference.self_attention import project

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

        Only these P rows of the matrix of weights are made.

        Args:
            x: ``[B, C, H, W]``.
            positions: ``[P, 2]``, integers: row and column of each query.

        Raises:
            RuntimeError: ``positions`` has another shape or is not integer.
            IndexError: a position lies outside of x.
        """
        if positions.dim() != 2 or positions.shape[1] != 2 or positions.dtype.is_floating_point:
            raise RuntimeError(
                "SelfAttention2d.attention_maps: positions must be integers of shape [P, 2], got "
                f"{positions.dtype} of shape {tuple(positions.shape)}"
            )
        size = x.shape[2:]
        if ((positions < 0) | (positions >= positions.new_tensor(size))).any():
            raise IndexError(
                f"SelfAttention2d.attention_maps: positions must lie in {tuple(size)}, got {positions.tolist()}"
            )
        query = project(x[:, :, positions[:, 0], positions[:, 1]].unsqueeze(3), self.query.weight)  # [B, d, P, 1]
        key = project(x, self.key.weight)
        key = torch.nn.functional.max_pool2d(key, 2) if self.pool else key
        weights = torch.softmax(query.flatten(2).mT @ key.flatten(2), -1)
        return weights.unflatten(-1, key.shape[2:])

    def load_biggan(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
        """Load BigGAN-PyTorch's ``theta``, ``phi``, ``g``, ``o`` (with ``u0`` where there is one) and ``gamma``.

        Args:
            state_dict: the checkpoint. prefix: of the layer's keys, such as ``"blocks.3.1."``.

        Raises:
            KeyError: a key is missing. RuntimeError: a shape does not fit.
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
        for layer, name in zip((self.query, self.key, self.value, self.out), names, strict=True):
            load_spectral_norm(layer, state_dict, f"{prefix}{name}.")
        with torch.no_grad():
            self.gamma.copy_(state_dict[f"{prefix}gamma"].reshape(()))

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
        return f"{self.channels}, pool={self.pool}"
