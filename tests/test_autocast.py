"""Every family of models under ``torch.autocast``: in bfloat16, near what it computes without, trained through it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gencore
from gencore.train import StyleGANTraining

GROWN = {"resolution": 16, "channels": 1, "latent": 16, "channel_budget": 256, "max_channels": 16}
STYLED = {"style": 16, "mapping_layers": 2}
DEEP = {"generator": (4, 4, 2, 1), "discriminator": (1, 2, 4, 4), "width": 8, "attention": 16, "resolution": 32}
MODELS: dict[str, dict[str, Any]] = {
    "biggan_32": {"width": 2, "classes": 3, "latent": 5},
    "biggan_128": {"classes": 3, "shared": 6, "chunk": 5, **DEEP},
    "biggan_deep_128": {"classes": 3, "shared": 6, "latent": 5, **DEEP},
    "dcgan_32": {"width": 8, "latent": 16},
    "gan3d_32": {"width": 4, "latent": 8},
    "progan_256": GROWN,
    "red_cnn": {"width": 8},
    "red_net_10": {"width": 8},
    "sngan_32": {"generator": (8,) * 4, "discriminator": (8,) * 4, "classes": 3},
    "stylegan2_256": GROWN | STYLED | {"clamp": 256.0},
    "stylegan_256": GROWN | STYLED,
    "vae_32": {"width": 8, "hidden": 32},
}


def run(model: Any) -> list[Tensor]:
    """What its networks compute; the same numbers go in."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    if not hasattr(model, "discriminator"):
        images = torch.rand(4, 1, 32, 32, generator=generator)
        results = model(images)
        return [results] if isinstance(results, Tensor) else list(results)
    z = model.sample_latent(4, generator=generator)
    classes = (model.sample_classes(4, generator=generator),) if getattr(model, "num_classes", 0) else ()
    fixed = {"noise": "const"} if hasattr(model.config, "style") else {}
    images = model(z, *classes, **fixed)
    return [images, model.discriminator(images, *classes)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_models_follow_autocast(name: str, training: bool) -> None:
    model = gencore.create_model(name, **MODELS[name]).train(training)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = run(model)
    model.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        results = run(model)
    assert results[0].dtype == (torch.float32 if name == "red_net_10" else torch.bfloat16)  # which adds to its input
    error = (results[0].float() - wanted[0]).square().mean().sqrt()
    assert error < 0.1 * wanted[0].square().mean().sqrt()
    sum(result.float().square().mean() for result in results).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.dtype == torch.float32, key
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["stylegan_256", "stylegan2_256"])
def test_styles_are_trained_and_truncated_under_autocast(name: str) -> None:
    model = gencore.create_model(name, **MODELS[name])
    with torch.autocast("cpu", torch.bfloat16):
        training = StyleGANTraining(model, path_every=1, r1_every=1)
        metrics = training.step(torch.randn(4, 1, 16, 16))
        assert training.sample(model.sample_latent(2), truncation=0.5).dtype == torch.bfloat16
    assert all(value == value for value in metrics.values())
    assert model.generator.mapping.w_avg.abs().sum() > 0


def test_layers_follow_autocast() -> None:
    x, w, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 5), torch.randn(2, 1, 4, 4)
    layer = gencore.nn.ModulatedConv2d(3, 4, 3, 5, noise_resolution=4)
    layer.noise_strength.data.fill_(1)
    injection = gencore.nn.NoiseInjection(3)
    injection.weight.data.fill_(1)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, w, noise)
        assert gencore.nn.EqualizedConv2d(3, 4, 3, up=2)(x).dtype == torch.bfloat16
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x, w, noise), rtol=0.05, atol=0.05)
    assert injection(x.bfloat16(), noise).dtype == torch.bfloat16
