"""What BigGAN-PyTorch and Hugging Face call the weights of BigGAN and of BigGAN-deep.

In BigGAN-PyTorch, a weight with spectral norm stands beside ``u0``, from which one step of the power method gives
sigma, in evaluation too; ``sv0``, the latest sigma, is there to be looked at. Hugging Face has PyTorch's former names.
"""

from __future__ import annotations

import torch
from torch import Tensor

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


# --- Hugging Face's pytorch-pretrained-BigGAN ------------------------------------------------------------------------

# Statistics are kept for this many thresholds of truncation, from 0 to 1: the last are those of z as it is.
THRESHOLDS = 51


def huggingface_generator(config: BigGANDeepConfig) -> Names:
    """BigGAN-deep's generator, in the only file that there is."""
    channels = config.width * config.generator[0]

    def write(t: Tensor) -> Tensor:
        """Rows of the first layer in the order height, width, channels."""
        return t.unflatten(0, (channels, 4, 4)).movedim(0, 2).flatten(0, 2)

    def read(t: Tensor) -> Tensor:
        return t.unflatten(0, (4, 4, channels)).movedim(2, 0).flatten(0, 2)

    yield Entry("shared.weight", "embeddings.weight", lambda t: t.T, lambda t: t.T)
    for ours, theirs in (("parametrizations.weight.original", "weight_orig"), ("bias", "bias")):
        yield Entry(f"linear.{ours}", f"generator.gen_z.{theirs}", write, read)
    yield Entry("linear.parametrizations.weight.0._u", "generator.gen_z.weight_u", write, read)
    yield Entry("linear.parametrizations.weight.0._v", "generator.gen_z.weight_v")
    number = 0
    for i in range(len(config.generator) - 1):
        for j in (0, 1):
            ours, theirs = f"blocks.{8 << i}.{j}", f"generator.layers.{number}"
            for n in range(4):
                yield from _former(f"{ours}.conv{n + 1}", f"{theirs}.conv_{n}")
                yield from _former(f"{ours}.norms.{n}.gain", f"{theirs}.bn_{n}.scale", bias=False)
                yield from _former(f"{ours}.norms.{n}.bias", f"{theirs}.bn_{n}.offset", bias=False)
                yield from _thresholds(f"{ours}.norms.{n}", f"{theirs}.bn_{n}")
            number += 1
        if 8 << i == config.attention:
            ours, theirs = f"attention.{8 << i}", f"generator.layers.{number}"
            for own, other in PROJECTIONS.items():
                name = "o_conv" if other == "o" else other
                yield from _former(f"{ours}.{own}", f"{theirs}.snconv1x1_{name}", bias=False)
            yield Entry(f"{ours}.gamma", f"{theirs}.gamma", lambda t: t[None], lambda t: t[0])
            number += 1
    yield Entry("norm.weight", "generator.bn.weight")
    yield Entry("norm.bias", "generator.bn.bias")
    yield from _thresholds("norm", "generator.bn")
    yield from _former("to_image", "generator.conv_to_rgb")


def _former(ours: str, theirs: str, *, bias: bool = True) -> Names:
    """A layer with PyTorch's former spectral norm."""
    yield Entry(f"{ours}.parametrizations.weight.original", f"{theirs}.weight_orig")
    yield Entry(f"{ours}.parametrizations.weight.0._u", f"{theirs}.weight_u")
    yield Entry(f"{ours}.parametrizations.weight.0._v", f"{theirs}.weight_v")
    if bias:
        yield Entry(f"{ours}.bias", f"{theirs}.bias")


def _thresholds(ours: str, theirs: str) -> Names:
    for own, other in (("running_mean", "running_means"), ("running_var", "running_vars")):
        yield Entry(f"{ours}.{own}", f"{theirs}.{other}", lambda t: t.expand(THRESHOLDS, -1), lambda t: t[-1])


def no_discriminator(config: BigGANDeepConfig) -> Names:
    """None was released."""
    yield from ()
