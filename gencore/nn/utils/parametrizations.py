"""Spectral normalisation as a parametrisation: ``torch.nn.utils.parametrizations.spectral_norm``'s twin.

Buffers and ``state_dict`` keys are PyTorch's (``parametrizations.weight.original``, ``.0._u``, ``.0._v``), so that
checkpoints go both ways. :func:`spectral_norm_model` makes one call of all the layers of a network, and
:func:`load_spectral_norm` reads the formats in which released checkpoints keep u, v and the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import compress
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional
from torch import Tensor, nn
from torch.nn.utils import parametrize

import gencore.functional as F
from gencore.ops._checkpointing import (
    is_backward,
    is_kept_by_frame,
    note_for,
    regions_under_way,
    repeated_value,
)
from gencore.ops.spectral_norm_checks import check_settings
from gencore.reference.spectral_norm import as_matrix, divisor

CONVENTIONS = ("torch", "biggan")


def spectral_norm(
    module: nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    convention: str = "torch",
    impl: str = "auto",
) -> nn.Module:
    """Normalise ``module``'s parameter by its largest singular value whenever it is read, and return the module.

    Arguments, defaults, buffers, random numbers drawn and ``state_dict`` are those of
    :func:`torch.nn.utils.parametrizations.spectral_norm`; the weight comes from
    :func:`gencore.functional.spectral_norm`.

    Args:
        module: what holds the parameter.
        name: of the parameter. One dimension alone is divided by its length, without buffers.
        n_power_iterations: at each reading in training mode; positive.
        eps: positive; see :func:`gencore.functional.spectral_norm`.
        dim: the dimension of the outputs; None: 1 for transposed convolutions, 0 for everything else.
        convention: ``"torch"``; or ``"biggan"``, sigma as BigGAN's released code has it: v comes from u at each
            reading, and evaluation does one iteration too, without keeping it.
        impl: which implementation of :func:`gencore.functional.spectral_norm` runs.

    Raises:
        ValueError: no such parameter; ``n_power_iterations`` or ``eps`` not positive; an unknown convention.
        IndexError: ``dim`` out of range.
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"spectral_norm: {type(module).__name__} has no parameter or buffer named {name!r}")
    if dim is None:
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        dim = 1 if isinstance(module, transposed) else 0
    normal = SpectralNorm(weight, n_power_iterations, dim, eps, convention=convention, impl=impl)
    parametrize.register_parametrization(module, name, normal)
    return module


def spectral_norm_model(network: nn.Module, *, fold: bool = True) -> nn.Module:
    """Let all layers of ``network`` that have :func:`spectral_norm` share one call a forward, and return the network.

    Before each forward of the network, one :func:`gencore.functional.spectral_norm_list` normalises all weights; during
    it, every reading of a weight finds the result. Outside of it each layer works for itself. ``state_dict`` does not
    change. Activation checkpointing may take in the network or parts of it. A layer belongs to one network, the last
    that it was given to: the model around a network takes the network's layers over.

    Args:
        fold: of gencore's convolutions and linear layers, compute sigma alone. Their W / sigma is not written: the
            layer multiplies by 1 / sigma what it gets from W, which stays packed as long as it does not change. Results
            differ by rounding. Whoever reads ``layer.weight`` still gets W / sigma. It is written as ever for other
            layers and other parametrisations on top, on a GPU, in 16 bits and under autocast.

    Raises:
        ValueError: no layer of the network has gencore's :func:`spectral_norm`, or they differ in iterations, eps,
            convention or impl.
    """
    layers = [
        _Member(
            cast(Any, module).parametrizations[name], found, name == "weight" and getattr(module, "takes_scale", False)
        )
        for module in network.modules()
        for name in getattr(module, "parametrizations", ())
        if (found := _parametrization(module, name)) is not None and found.has_buffers
    ]
    if not layers:
        raise ValueError("spectral_norm_model: no layer of the network has gencore's spectral_norm")
    settings = {layer.normal.settings for layer in layers}
    if len(settings) > 1:
        raise ValueError(f"spectral_norm_model: all layers must have the same settings, got {sorted(settings)}")
    batch = _Batch(layers, fold)
    network.register_forward_pre_hook(batch.begin)
    network.register_forward_hook(batch.end, always_call=True)
    return network


def load_spectral_norm(module: Any, state_dict: Mapping[str, Tensor], prefix: str = "", name: str = "weight") -> None:
    """Load a weight, and its u and v, from any of the formats in use; a module without spectral norm gets W / sigma.

    Known are PyTorch's present one (``parametrizations.weight.original``, ``.0._u``, ``.0._v``), its former one
    (``weight_orig``, ``weight_u``, ``weight_v``), BigGAN's (``weight``, ``u0``: one vector, and sigma from one
    iteration that starts at it), and a plain ``weight`` (u and v stay as they are). The module's bias is loaded too, if
    it has one. Where something is wrong, nothing is loaded.

    Args:
        module: has ``name``, with or without :func:`spectral_norm`.
        state_dict: the checkpoint. prefix: of the layer's keys, such as ``"blocks.0.conv1."``.

    Raises:
        KeyError: the weight is not there under any of the names, or the module's bias is missing.
        RuntimeError: the shape of something is not the module's.
    """
    copy_all(read_spectral_norm(module, state_dict, prefix, name))


def copy_all(values: list[tuple[Tensor, Tensor]]) -> None:
    """Copy the second of each pair into the first."""
    with torch.no_grad():
        for target, value in values:
            target.copy_(value)


@torch.no_grad()
def read_spectral_norm(
    module: Any, state_dict: Mapping[str, Tensor], prefix: str = "", name: str = "weight"
) -> list[tuple[Tensor, Tensor]]:
    """What :func:`load_spectral_norm` would copy, and where to; errors as there."""
    weight, u, v = _find(state_dict, prefix, name)
    normal = _parametrization(module, name)
    target = module.parametrizations[name].original if normal else getattr(module, name)
    _check_loaded(f"{prefix}{name}", weight, tuple(target.shape))
    dim = normal.dim if normal else 1 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 0
    for key, vector, length in zip(("u", "v"), (u, v), as_matrix(target, dim).shape, strict=True):
        if vector is not None:
            _check_loaded(f"{prefix}{name}'s {key}", vector, (length,))
    if u is not None and v is None:
        u, v = _from_single_vector(weight, u, dim, normal is not None and normal.convention == "biggan")
    if normal is None and u is not None and v is not None:
        weight, _ = F.spectral_norm(weight, u, v, training=False, dim=dim)
    found = [(target, weight)]
    if normal is not None and u is not None and v is not None:
        found += [(normal._u, u), (normal._v, v)]
    bias = getattr(module, "bias", None)
    if bias is not None:
        if f"{prefix}bias" not in state_dict:
            raise KeyError(f"load_spectral_norm: the checkpoint has no {prefix}bias")
        _check_loaded(f"{prefix}bias", state_dict[f"{prefix}bias"], tuple(bias.shape))
        found.append((bias, state_dict[f"{prefix}bias"]))
    return found


def _check_loaded(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise RuntimeError(f"load_spectral_norm: {name} must have shape {shape}, got {tuple(value.shape)}")


class SpectralNorm(nn.Module):
    """The parametrisation that :func:`spectral_norm` registers."""

    def __init__(
        self,
        weight: Tensor,
        n_power_iterations: int = 1,
        dim: int = 0,
        eps: float = 1e-12,
        *,
        convention: str = "torch",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        rank = weight.dim()
        if not -rank <= dim < rank:
            raise IndexError(f"spectral_norm: dim must be between {-rank} and {rank - 1}, got {dim}")
        check_settings("spectral_norm", n_power_iterations, eps)
        if n_power_iterations <= 0:
            raise ValueError(f"spectral_norm: n_power_iterations must be positive, got {n_power_iterations}")
        if convention not in CONVENTIONS:
            raise ValueError(f"spectral_norm: convention must be one of {', '.join(CONVENTIONS)}; got {convention!r}")
        self.n_power_iterations, self.dim, self.eps = n_power_iterations, dim % rank, eps
        self.convention, self.impl = convention, impl
        self.has_buffers = rank > 1
        self.batch: _Batch | None = None
        self.shared: _Shared | None = None  # during a forward of spectral_norm_model's network
        if self.has_buffers:
            rows, columns = as_matrix(weight.detach(), self.dim).shape
            u = weight.detach().new_empty(rows).normal_()
            v = weight.detach().new_empty(columns).normal_()
            self.register_buffer("_u", torch.nn.functional.normalize(u, dim=0, eps=eps))
            self.register_buffer("_v", torch.nn.functional.normalize(v, dim=0, eps=eps))
            if weight.device.type != "meta":
                # A start from random vectors is far from the singular ones: PyTorch's 15 iterations.
                with torch.no_grad():
                    F.spectral_norm(weight.detach(), self._u, self._v, n_power_iterations=15, **self.options)

    _u: Tensor
    _v: Tensor

    @property
    def settings(self) -> tuple[int, float, str, str]:
        """What all layers of one batch must have in common."""
        return self.n_power_iterations, self.eps, self.convention, self.impl

    @property
    def options(self) -> dict[str, Any]:
        return {"eps": self.eps, "dim": self.dim, "v_first": self.convention == "biggan", "impl": self.impl}

    def buffers_to_use(self) -> tuple[Tensor, Tensor, bool]:
        """u, v and whether to iterate; BigGAN's evaluation iterates on copies."""
        if self.convention == "biggan" and not self.training:
            return self._u.clone(), self._v.clone(), True
        return self._u, self._v, self.training

    def forward(self, weight: Tensor) -> Tensor:
        if not self.has_buffers:
            return torch.nn.functional.normalize(weight, dim=0, eps=self.eps)
        shared = self.find_shared()
        if shared is not None and shared.ready is not None:
            return shared.ready
        if shared is not None and shared.scale is not None:
            return weight * shared.scale
        u, v, iterate = self.buffers_to_use() if shared is None else (shared.u, shared.v, False)
        return F.spectral_norm(
            weight, u, v, n_power_iterations=self.n_power_iterations, training=iterate, **self.options
        )[0]

    def find_shared(self) -> _Shared | None:
        """What the network's forward has for this layer, also where checkpointing repeats a part of that forward."""
        if torch.compiler.is_compiling():
            return self.shared
        shared = self.shared
        if shared is None and is_backward():
            shared = repeated_value(self)
        if shared is not None:
            for region in regions_under_way(shared.grad):
                if not any(region is other for other in shared.regions):
                    note_for(region, self, shared.for_repetition(is_kept_by_frame(region)))
        return shared

    def right_inverse(self, value: Tensor) -> Tensor:
        return value

    def extra_repr(self) -> str:
        return f"n_power_iterations={self.n_power_iterations}, eps={self.eps}, dim={self.dim}"


class _Shared(NamedTuple):
    """Of one layer, from the call for all layers."""

    ready: Tensor | None  # W / sigma
    scale: Tensor | None  # or 1 / sigma
    u: Tensor  # after the iterations
    v: Tensor
    regions: list[Any]  # the checkpointed forwards that took in the call: their repetition makes it again
    grad: bool  # whether gradients were recorded

    def for_repetition(self, reads: bool) -> _Shared:
        """What the repetition of a part of the network's forward needs. One that only reads the tensors that its layers
        save needs the same ones; one that is differentiated comes to W by an operation of its own."""
        again = self._replace(regions=[], grad=True)
        if reads:
            detached = [
                None if x is None else x.detach().requires_grad_(x.requires_grad) for x in (self.ready, self.scale)
            ]
            return again._replace(ready=detached[0], scale=detached[1])
        return again._replace(ready=None, scale=None, u=self.u.clone(), v=self.v.clone())


class _Member(NamedTuple):
    """A layer of a batch."""

    owner: Any  # the list of its parametrisations
    normal: SpectralNorm  # the first of them
    takes_scale: bool  # it can multiply by 1 / sigma itself


class _Batch:
    """Normalises the weights of a network's layers before its forward, and forgets them after it."""

    def __init__(self, layers: list[_Member], fold: bool) -> None:
        self.layers, self.fold = layers, fold
        for layer in layers:
            if layer.normal.batch is not None:
                layer.normal.batch.release(layer.normal)
            layer.normal.batch = self

    def release(self, normal: SpectralNorm) -> None:
        """Another network has it now; two would move its u and v twice a forward."""
        self.layers = [layer for layer in self.layers if layer.normal is not normal]

    def begin(self, network: nn.Module, args: Any) -> None:
        if not self.layers:
            return
        first = self.layers[0].normal
        if any(layer.normal.training != first.training for layer in self.layers):
            return  # some are frozen: each for itself
        used = [layer.normal.buffers_to_use() for layer in self.layers]
        weights = [layer.owner.original for layer in self.layers]
        folds = self.fold and weights[0].device.type == "cpu" and not _rounds_scales(weights[0].dtype)
        written = [not (folds and layer.takes_scale and len(layer.owner) == 1) for layer in self.layers]
        ready, sigmas = F.spectral_norm_list(
            weights,
            [u for u, _, _ in used],
            [v for _, v, _ in used],
            n_power_iterations=first.n_power_iterations,
            eps=first.eps,
            training=used[0][2],
            dims=[layer.normal.dim for layer in self.layers],
            v_first=first.convention == "biggan",
            written=written,
            impl=first.impl,
        )
        given = iter(ready)
        folded = [not wanted for wanted in written]
        scales: Iterator[Tensor] = iter(())
        if any(folded):
            scales = iter(divisor(torch.stack(list(compress(sigmas, folded))), first.eps).reciprocal().unbind())
        grad = torch.is_grad_enabled()
        regions = [] if torch.compiler.is_compiling() else regions_under_way()
        for layer, wanted, (u, v, _) in zip(self.layers, written, used, strict=True):
            layer.normal.shared = _Shared(
                next(given) if wanted else None, None if wanted else next(scales), u, v, regions, grad
            )

    def end(self, network: nn.Module, args: Any, output: Any) -> None:
        for layer in self.layers:
            layer.normal.shared = None


def weight_and_scale(module: Any) -> tuple[Tensor, Tensor | None]:
    """For a layer with ``takes_scale``: its weight, and what the products with it still lack, if anything."""
    normal = _parametrization(module, "weight")
    shared = None if normal is None else normal.find_shared()
    if shared is None or shared.scale is None or _rounds_scales(shared.scale.dtype):
        return module.weight, None
    return module.parametrizations.weight.original, shared.scale


def _rounds_scales(dtype: torch.dtype) -> bool:
    """In 16 bits 1 / sigma would be rounded, and everything that a layer gives by the same factor."""
    return dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu")


def _parametrization(module: Any, name: str) -> SpectralNorm | None:
    if not parametrize.is_parametrized(module, name):
        return None
    first = module.parametrizations[name][0]
    return first if isinstance(first, SpectralNorm) else None


def _find(state_dict: Mapping[str, Tensor], prefix: str, name: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    new = f"parametrizations.{name}."
    names = (
        (f"{new}original", f"{new}0._u", f"{new}0._v"),
        (f"{name}_orig", f"{name}_u", f"{name}_v"),
        (name, "u0", ""),
    )
    for weight, u, v in names:
        if prefix + weight in state_dict:
            vectors = [x.flatten() if (x := state_dict.get(prefix + key)) is not None else None for key in (u, v)]
            return state_dict[prefix + weight], vectors[0], vectors[1]
    keys = ", ".join(prefix + weight for weight, _, _ in names)
    raise KeyError(f"load_spectral_norm: the checkpoint has none of {keys}")


def _from_single_vector(weight: Tensor, u0: Tensor, dim: int, keep_u0: bool) -> tuple[Tensor, Tensor]:
    """The u and v that give BigGAN's sigma in evaluation: one iteration from u0."""
    u, v = u0.clone(), weight.new_zeros(as_matrix(weight, dim).shape[1])
    F.spectral_norm(weight, u, v, dim=dim)
    return (u0 if keep_u0 else u), v
