"""3D-GAN, RED-Net and RED-CNN: published sizes, the same results on torch.nn's layers, and that they learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gencore
from gencore import losses
from gencore.train import GANTraining, RestorationTraining, gaussian_noise

RESTORATION = [*gencore.list_models("red_net*"), "red_cnn"]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "one", "three"),
    [
        ("red_net_10", 296_641, 298_947),
        ("red_net_20", 665_921, 668_227),
        ("red_net_30", 1_035_201, 1_037_507),
        ("red_net_30_wide", 4_134_785, 4_139_395),
        ("red_cnn", 1_848_865, None),
    ],
)
def test_published_sizes(name: str, one: int, three: int | None) -> None:
    with torch.device("meta"):
        assert count(gencore.create_model(name)) == one
        assert three is None or count(gencore.create_model(name, channels=3)) == three


def test_published_sizes_of_3d_gan() -> None:
    with torch.device("meta"):
        model = gencore.create_model("gan3d_64")
    assert (count(model.generator), count(model.discriminator)) == (17_569_664, 11_048_832)


def twins(name: str, **options: Any) -> tuple[Any, Any]:
    own, plain = (gencore.create_model(name, layers=layers, **options).double() for layers in ("gencore", "torch"))
    assert list(own.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(own.state_dict())
    return own, plain


def assert_equal_gradients(own: nn.Module, plain: nn.Module) -> None:
    for (name, a), b in zip(own.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", RESTORATION)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_restoration_equals_torch(name: str, layout: torch.memory_format) -> None:
    own, plain = (m.to(memory_format=layout) for m in twins(name, width=6, channels=3))
    x = torch.rand(2, 3, 23, 26, dtype=torch.float64).contiguous(memory_format=layout)
    results = []
    for model in (own, plain):
        y = model(x)
        assert y.shape == x.shape
        y.square().sum().backward()
        results.append(y)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)
    assert_equal_gradients(own, plain)


def test_skips_and_residual() -> None:
    x = torch.rand(1, 1, 9, 9)
    model = gencore.create_model("red_net_10", width=4)
    nn.init.zeros_(model.to_image.weight)
    assert torch.equal(model(x), x), "a residual network that finds no corruption must give the image back"
    direct = gencore.create_model("red_net_10", width=4, residual=False, skips=False)
    direct.load_state_dict(model.state_dict())
    assert (direct(x) == 0).all()
    with_skips = gencore.create_model("red_net_10", width=4, residual=False)
    with_skips.load_state_dict(model.state_dict())
    for m in (direct, with_skips):
        nn.init.ones_(m.to_image.weight)
    # The first layer after the code silenced: what arrives past it came over the skip of the fourth convolution.
    for m in (direct, with_skips):
        nn.init.zeros_(m.decoder[0].weight)
        nn.init.zeros_(m.decoder[2].weight)
    assert (direct(x) == 0).all()
    assert (with_skips(x) != 0).any()


# RED-CNN starts as the identity with the negative half of the noise cut off: there is less to gain.
@pytest.mark.parametrize(("name", "share"), [("red_net_10", 0.5), ("red_cnn", 0.85)])
def test_denoising_learns(name: str, share: float) -> None:
    ramp, generator = torch.linspace(0, 1, 24), torch.Generator().manual_seed(0)
    down, across = torch.rand(2, 16, 1, 1, 1, generator=generator)
    images = (ramp[:, None] * down + ramp * across) / 2

    def training() -> RestorationTraining:
        torch.manual_seed(0)
        model = gencore.create_model(name, width=8)
        return RestorationTraining(model, gaussian_noise(50.0, 1.0), learning_rate=2e-3, data_range=1.0)

    first = training()
    history = [first.step(images) for _ in range(60)]
    assert history[-1]["loss"] < share * history[0]["loss"]
    assert history[-1]["psnr"] == pytest.approx(-10 * math.log10(history[-1]["loss"]), abs=1e-3)
    second = training()
    second.load_state_dict(first.state_dict())
    assert second.step(images) == first.step(images)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_3d_gan_equals_torch(layout: torch.memory_format) -> None:
    own, plain = (m.to(memory_format=layout) for m in twins("gan3d_32", width=3, latent=7))
    z = own.sample_latent(3)
    assert 0 <= z.min() <= z.max() <= 1
    results: list[tuple[Tensor, ...]] = []
    for model in (own, plain):
        fake = model(z)
        assert fake.shape == (3, 1, 32, 32, 32)
        logits = model.discriminator(fake)
        losses.non_saturating_generator(logits).backward()
        results.append((fake, logits))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)
    assert_equal_gradients(own, plain)


def test_3d_gan_trains() -> None:
    torch.manual_seed(0)
    model = gencore.create_model("gan3d_32", width=4, latent=16, resolution=16)
    volumes = torch.zeros(8, 1, 16, 16, 16)
    volumes[:, :, 4:12, 4:12, 4:12] = 1
    training = GANTraining(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    metrics = [training.step(volumes) for _ in range(5)]
    assert all(value == value for step in metrics for value in step.values())
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_bad_configurations() -> None:
    with pytest.raises(ValueError, match="depth must be an even number of at least 4, got 11"):
        gencore.create_model("red_net_10", depth=11)
    with pytest.raises(ValueError, match=r"resolution must be 8, 16, 32, .*; got 24"):
        gencore.create_model("gan3d_64", resolution=24)
    with pytest.raises(RuntimeError, match="must not be smaller than the kernel"):
        gencore.create_model("red_cnn", width=4)(torch.rand(1, 1, 20, 30))
