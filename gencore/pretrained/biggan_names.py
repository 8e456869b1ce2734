"""What BigGAN-PyTorch calls the weights of BigGAN and of BigGAN-deep.

A weight W with spectral norm stands there beside ``u0``, from which one step of the power method gives sigma, in
evaluation too; ``sv0``, the latest sigma, is there to be looked at.
"""

from __future__ import annotations

import torch

from gencore.models.biggan import BigGANConfig
from gencore.models.biggan_deep import BigGANDeepConfig
from gencore.pretrained.names import Constant, Entry, Names

PROJECTIONS = {"query": "theta", "key": "phi", "value": "g", "out": "o"}


def _normalised(ours: str, theirs: str, *, bias: bool = True) -> Names:
    """A layer with spectral norm."""
    yield Entry(f"{ours}.parametrizations.weight.original", f"{theirs}.weight")
    yield Entry(f"{ours}.parametrizations.weight.0._u", f"{theirs}.u0", lambda t: t[None], lambda t: t[0])
    yield Constant(f"{theirs}.sv0", lambda: torch.ones(1))
    if bias:
        yield Entry(f"{ours}.bias", f"{theirs}.bias")


def _statistics(ours: str, theirs: str) -> Names:
    yield Entry(f"{ours}.running_mean", f"{theirs}.stored_mean")
    yield Entry(f"{ours}.running_var", f"{theirs}.stored_var")


def _norm(ours: str, theirs: str, *, shared: bool) -> Names:
    """A conditional norm; embeddings of gains of its own are kept there less 1."""
    yield from _statistics(ours, theirs)
    if shared:
        yield from _normalised(f"{ours}.gain", f"{theirs}.gain", bias=False)
        yield from _normalised(f"{ours}.bias", f"{theirs}.bias", bias=False)
    else:
        yield Entry(f"{ours}.gain.weight", f"{theirs}.gain.weight", lambda t: t - 1, lambda t: t + 1)
        yield Entry(f"{ours}.bias.weight", f"{theirs}.bias.weight")


def _attention(ours: str, theirs: str) -> Names:
    for own, other in PROJECTIONS.items():
        yield from _normalised(f"{ours}.{own}", f"{theirs}.{other}", bias=False)
    yield Entry(f"{ours}.gamma", f"{theirs}.gamma")


def _output() -> Names:
    yield Entry("norm.weight", "output_layer.0.gain")
    yield Entry("norm.bias", "output_layer.0.bias")
    yield from _statistics("norm", "output_layer.0")
    yield from _normalised("to_image", "output_layer.2")


def biggan_generator(config: BigGANConfig) -> Names:
    """BigGAN's ``G``, as its ``state_dict`` has it."""
    shared = config.shared > 0
    attention = config.attention if config.generator_attention is None else config.generator_attention
    if shared:
        yield Entry("shared.weight", "shared.weight")
    yield from _normalised("linear", "linear")
    for i in range(len(config.generator) - 1):
        ours, theirs = f"blocks.{8 << i}", f"blocks.{i}.0"
        for n in (1, 2):
            yield from _norm(f"{ours}.norm{n}", f"{theirs}.bn{n}", shared=shared)
            yield from _normalised(f"{ours}.conv{n}", f"{theirs}.conv{n}")
        yield from _normalised(f"{ours}.skip", f"{theirs}.conv_sc")
        if 8 << i == attention:
            yield from _attention(f"attention.{8 << i}", f"blocks.{i}.1")
    yield from _output()


def biggan_discriminator(config: BigGANConfig) -> Names:
    """BigGAN's ``D``."""
    halvings = len(config.discriminator) - 1 if config.halvings is None else config.halvings
    before, stage = 0, 0
    for i, width in enumerate(config.discriminator):
        for name in ("conv1", "conv2"):
            yield from _normalised(f"stages.{stage}.{name}", f"blocks.{i}.0.{name}")
        if i < halvings or width != before:
            yield from _normalised(f"stages.{stage}.skip", f"blocks.{i}.0.conv_sc")
        stage += 1
        if config.attention and config.resolution >> (i + 1) == config.attention:
            yield from _attention(f"stages.{stage}", f"blocks.{i}.1")
            stage += 1
        before = width
    yield from _head()


def _head() -> Names:
    yield from _normalised("head.linear", "linear")
    yield from _normalised("head.embedding", "embed", bias=False)


def biggan_deep_generator(config: BigGANDeepConfig) -> Names:
    """BigGAN-deep's ``G``, whose blocks are numbered through."""
    yield Entry("shared.weight", "shared.weight")
    yield from _normalised("linear", "linear")
    for i in range(len(config.generator) - 1):
        for j in (0, 1):
            ours, theirs = f"blocks.{8 << i}.{j}", f"blocks.{2 * i + j}.0"
            for n in range(4):
                yield from _norm(f"{ours}.norms.{n}", f"{theirs}.bn{n + 1}", shared=True)
                yield from _normalised(f"{ours}.conv{n + 1}", f"{theirs}.conv{n + 1}")
        if 8 << i == config.attention:
            yield from _attention(f"attention.{8 << i}", f"blocks.{2 * i + 1}.1")
    yield from _output()


def biggan_deep_discriminator(config: BigGANDeepConfig) -> Names:
    """BigGAN-deep's ``D``."""
    yield from _normalised("from_image", "input_conv")
    widths, stage = config.discriminator, 0
    for i in range(len(widths) - 1):
        for j in (0, 1):
            ours, theirs = f"stages.{stage}", f"blocks.{i}.{j}"
            for n in range(1, 5):
                yield from _normalised(f"{ours}.conv{n}", f"{theirs}.conv{n}")
            if j == 0 and widths[i + 1] > widths[i]:
                yield from _normalised(f"{ours}.skip", f"{theirs}.conv_sc")
            stage += 1
        if config.resolution >> (i + 1) == config.attention:
            yield from _attention(f"stages.{stage}", f"blocks.{i}.2")
            stage += 1
    yield from _head()
