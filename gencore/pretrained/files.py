"""Loading and saving weights in the formats of other projects."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

import gencore.functional as F
from gencore.models import BigGAN, BigGANDeep, ProGAN, StyleGAN, StyleGAN2
from gencore.pretrained import biggan_names, names
from gencore.pretrained.names import Constant, Entry, Names
from gencore.pretrained.safe_pickle import PickledModule, RefusedPickle, read_pickle


@dataclass(frozen=True)
class Format:
    """How one project lays a file out: which key holds which network, and what the weights are called there.

    With an ``extension``, each network is a file of its own, named after the key. A key may be empty: there is no such
    network.
    """

    generator: str
    average: str
    discriminator: str
    generator_names: Callable[[Any], Names]
    discriminator_names: Callable[[Any], Names]
    extension: str = ""


Model = BigGAN | BigGANDeep | ProGAN | StyleGAN | StyleGAN2
_GENFORCE = ("generator", "generator_smooth", "discriminator")

FORMATS: dict[tuple[type[nn.Module], str], Format] = {
    (StyleGAN2, "stylegan2-ada"): Format(
        "G", "G_ema", "D", names.stylegan2_ada_generator, names.stylegan2_ada_discriminator
    ),
    (StyleGAN2, "rosinality"): Format("g", "g_ema", "d", names.rosinality_generator, names.rosinality_discriminator),
    (StyleGAN, "genforce"): Format(
        *_GENFORCE, names.genforce_stylegan_generator, names.genforce_stylegan_discriminator
    ),
    (ProGAN, "genforce"): Format(*_GENFORCE, names.genforce_progan_generator, names.genforce_progan_discriminator),
    (BigGAN, "biggan-pytorch"): Format(
        "G", "G_ema", "D", biggan_names.biggan_generator, biggan_names.biggan_discriminator, ".pth"
    ),
    (BigGANDeep, "biggan-pytorch"): Format(
        "G", "G_ema", "D", biggan_names.biggan_deep_generator, biggan_names.biggan_deep_discriminator, ".pth"
    ),
    (BigGANDeep, "huggingface"): Format(
        "pytorch_model", "pytorch_model", "", biggan_names.huggingface_generator, biggan_names.no_discriminator, ".bin"
    ),
}


def load_pretrained(
    model: Model, source: str | Path | Mapping[str, Any], *, format: str, average: bool = True
) -> list[str]:
    """Load weights that another project trained. Nothing that a file contains is ever executed.

    Args:
        model: of the configuration that the weights were trained with; either all of a network is loaded or nothing of
            either.
        source: a file, or what is in one: networks' ``state_dict`` s under the project's keys. A pickle (of
            stylegan2-ada-pytorch or stylegan3) goes through :func:`read_pickle`; anything else is what ``torch.save``
            wrote. For ``"biggan-pytorch"``, a folder with ``G_ema.pth``, ``G.pth`` or ``D.pth``, for
            ``"huggingface"`` one with ``pytorch_model.bin``; or one such file.
        format: ``"stylegan2-ada"`` or ``"rosinality"`` for a StyleGAN2, ``"genforce"`` for a StyleGAN or a ProGAN,
            ``"biggan-pytorch"`` for a BigGAN or a BigGAN-deep, ``"huggingface"`` for a released BigGAN-deep.
        average: the running average of the generator, where the file has it, rather than its last weights.

    Returns:
        What was found and loaded: ``"generator"``, ``"discriminator"`` or both.

    Raises:
        ValueError: this model has no such format.
        FileNotFoundError: there is no such file.
        RefusedPickle: a file names anything but tensors and containers, or is damaged.
        RuntimeError: the file has neither network, or keys are missing, left over, or of another shape; all are listed.
    """
    layout = _layout(model, format)
    content = source if isinstance(source, Mapping) else _read(Path(source), layout)
    if layout.extension and content and all(isinstance(value, Tensor) for value in content.values()):
        content = {_which(content, layout, model.config): content}
    found: dict[str, dict[str, Tensor]] = {}
    problems: list[str] = []
    keys = list(dict.fromkeys([layout.average, layout.generator]))
    keys = keys if average else keys[::-1]
    for part, choices, table in (
        ("generator", keys, layout.generator_names(model.config)),
        ("discriminator", [layout.discriminator], layout.discriminator_names(model.config)),
    ):
        key = next((k for k in choices if k in content), None)
        if key is None:
            continue
        network: Any = getattr(model, part)
        found[part] = _translate(key, content[key], network.state_dict(), list(table), problems)
        if part == "generator" and format == "rosinality" and "latent_avg" in content:
            found[part]["mapping.w_avg"] = _average_style(
                content["latent_avg"], network.mapping.w_avg.numel(), problems
            )
    if not found:
        raise RuntimeError(
            f"load_pretrained: the file has none of {', '.join(filter(None, [*keys, layout.discriminator]))}; it has "
            f"{', '.join(map(str, content))}"
        )
    if problems:
        name = type(model).__name__
        raise RuntimeError(
            f"load_pretrained: the weights do not fit a {name} of {model.config}:\n  " + "\n  ".join(problems)
        )
    for part, state in found.items():
        network = getattr(model, part)
        network.load_state_dict({**network.state_dict(), **state})
        if format == "biggan-pytorch":
            _iterate(network)
    if "generator" in found and format == "rosinality" and "latent_avg" not in content:
        _estimate_average(model)
    return list(found)


def save_pretrained(model: Model, path: str | Path, *, format: str, average: nn.Module | None = None) -> None:
    """Write a model's weights as the other project would: ``state_dict`` s under its keys, with its names and shapes.

    Args:
        path: of the file; for ``"biggan-pytorch"`` and ``"huggingface"``, of the folder for the files.
        format: as in :func:`load_pretrained`. For ``"stylegan2-ada"`` these are plain ``state_dict`` s too, for its
            networks' ``load_state_dict``: its pickles would hold its source code.
        average: the averaged generator; the generator itself if None.

    Raises:
        ValueError: this model has no such format.
    """
    layout = _layout(model, format)
    average = model.generator if average is None else average
    content: dict[str, Any] = {}
    for key, network, table in (
        (layout.generator, model.generator, layout.generator_names),
        (layout.average, average, layout.generator_names),
        (layout.discriminator, model.discriminator, layout.discriminator_names),
    ):
        if not key:
            continue
        ours = network.state_dict()
        content[key] = {
            n.theirs: n.make() if isinstance(n, Constant) else n.write(ours[n.ours]).detach().cpu().clone()
            for n in table(model.config)
        }
    if format == "rosinality":
        content["latent_avg"] = average.state_dict()["mapping.w_avg"].cpu().clone()
    if not layout.extension:
        torch.save(content, path)
        return
    Path(path).mkdir(parents=True, exist_ok=True)
    for key, state in content.items():
        torch.save(state, Path(path) / f"{key}{layout.extension}")


def _layout(model: nn.Module, format: str) -> Format:
    known = [name for cls, name in FORMATS if isinstance(model, cls)]
    for (cls, name), layout in FORMATS.items():
        if isinstance(model, cls) and name == format:
            return layout
    raise ValueError(
        f"format must be one of {', '.join(known) or '(none)'} for a {type(model).__name__}; got {format!r}"
    )


def _read(path: Path, layout: Format) -> Mapping[str, Any]:
    if layout.extension and path.is_dir():
        keys = layout.generator, layout.average, layout.discriminator
        files = {key: path / f"{key}{layout.extension}" for key in keys}
        return {key: _load(file) for key, file in files.items() if file.exists()}
    content = read_pickle(path) if _is_pickle(path) else _load(path)
    if not isinstance(content, Mapping):
        raise RefusedPickle(f"{path} holds a {type(content).__name__}, wanted a dictionary of networks")
    return {
        key: value.state_dict() if isinstance(value, PickledModule) else value
        for key, value in content.items()
        if value is not None
    }


# What torch.save writes first: a zip archive's mark, or before torch 1.6 a number of its own as a pickle.
_TORCH = (b"PK", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


def _is_pickle(path: Path) -> bool:
    """Whether a file holds a pickle itself, whatever it is called."""
    with path.open("rb") as file:
        first = file.read(len(_TORCH[1]))
    return not first.startswith(_TORCH) and (first.startswith(b"\x80") or path.suffix == ".pkl")


def _which(state: Mapping[str, Any], layout: Format, config: Any) -> str:
    """The key of the network whose names are most of those in a file that holds one network."""
    tables = {layout.generator: layout.generator_names, layout.discriminator: layout.discriminator_names}
    return max(tables, key=lambda key: len({entry.theirs for entry in tables[key](config)} & state.keys()))


def _load(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors, containers and plain values."""
    try:
        # rosinality's files hold the arguments of their training, which are only values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything; torch's own advice is to run what is in it
        name = re.search(r"GLOBAL (\S+)", str(error))
        if name is not None:
            why = f"it wants to use {name[1]}, which no file of weights needs; nothing of it was run"
            raise RefusedPickle(f"{path}: refused: {why}") from None
        raise RefusedPickle(f"{path} is no file of weights: {type(error).__name__}: {error}") from None


def _translate(
    where: str,
    theirs: Any,
    ours: Mapping[str, Tensor],
    table: list[Entry | Constant],
    problems: list[str],
) -> dict[str, Tensor]:
    """Their ``state_dict`` under our names; what does not fit is added to ``problems``."""
    if not isinstance(theirs, Mapping):
        problems.append(f"{where}: wanted a state_dict, got a {type(theirs).__name__}")
        return {}
    strange = [
        f"{where}: the key {name!r} must be a str"
        if not isinstance(name, str)
        else f"{where}: {name} must be a Tensor, got a {type(value).__name__}"
        for name, value in theirs.items()
        if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if strange:
        problems += strange
        return {}
    theirs = {_plain(name): value for name, value in theirs.items() if not name.endswith(".accumulation_counter")}
    result = {}
    for entry in table:
        value = theirs.pop(entry.theirs, None)
        if isinstance(entry, Constant):
            continue
        wanted = tuple(entry.write(ours[entry.ours]).shape)
        if value is None:
            if not entry.optional:
                problems.append(f"{where}: {entry.theirs} is missing, wanted {wanted}")
        elif tuple(value.shape) != wanted:
            problems.append(f"{where}: {entry.theirs} must be {wanted}, got {tuple(value.shape)}")
        elif not value.is_floating_point():
            problems.append(f"{where}: {entry.theirs} must be floating point, got {value.dtype}")
        else:
            try:
                result[entry.ours] = entry.read(value)
            except ValueError as error:
                problems.append(f"{where}: {error}")
    problems += [f"{where}: {name} {tuple(value.shape)} is left over" for name, value in theirs.items()]
    return result


def _average_style(value: Any, width: int, problems: list[str]) -> Tensor:
    """rosinality's ``latent_avg``, ``[width]`` or ``[1, width]``; added to ``problems`` if it is anything else."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() != width:
        got = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        problems.append(f"latent_avg must be a floating-point Tensor [{width}], got {got}")
        return torch.empty(0)
    return value.flatten()


def _plain(name: str) -> str:
    """Without what wrappers put in front, and what BigGAN-PyTorch's norm over several devices puts in between."""
    return name.removeprefix("module.").removeprefix("_orig_mod.").replace(".bn.stored_", ".stored_")


@torch.no_grad()
def _iterate(network: nn.Module) -> None:
    """The step of the power method, from the one vector in a file, by which BigGAN-PyTorch finds sigma."""
    layers: list[Any] = [m for m in network.modules() if isinstance(m, ParametrizationList) and hasattr(m[0], "_u")]
    for layer in layers:
        norm = layer[0]
        F.spectral_norm(layer.original, norm._u, norm._v, dim=norm.dim, eps=norm.eps, v_first=True)


@torch.no_grad()
def _estimate_average(model: Model) -> None:
    """The mean style of 4,096 z, where a file does not say it."""
    assert isinstance(model, StyleGAN2)
    weight = model.generator.mapping.w_avg
    z = torch.randn(4096, model.config.latent, generator=torch.Generator().manual_seed(0)).to(weight)
    training = model.generator.mapping.training
    model.generator.mapping.w_avg.copy_(model.generator.mapping.eval()(z)[:, 0].mean(0))
    model.generator.mapping.train(training)
