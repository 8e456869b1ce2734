"""``gencore gallery``: every gallery trains, and writes pictures of what it should show."""

import io

import pytest
import torch
from PIL import Image
from rich.console import Console

import gencore
from gencore.apps import biggan_gallery, restoration_gallery, style_gallery, vae_gallery
from gencore.apps.gallery import GALLERIES, run_gallery
from gencore.cli import main

QUIET = Console(file=io.StringIO())


@pytest.mark.parametrize("name", GALLERIES)
def test_galleries(name, tmp_path):
    pictures = run_gallery(name, tmp_path / "deep", steps=8, console=QUIET)
    assert len(pictures) >= 3
    assert len(set(pictures)) == len(pictures)
    for path in pictures:
        assert path.name.startswith(name)
        with Image.open(path) as picture:
            low, high = picture.convert("L").getextrema()
            assert high > low, path


def generator():
    torch.manual_seed(0)
    model = gencore.create_model("stylegan2_32", **style_gallery.SMALL, style=64, mapping_layers=4)
    for key, parameter in model.named_parameters():
        if key.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.3)
    return model.generator.eval()


def test_mixing_grid():
    net = generator()
    a, b = torch.randn(2, 6, 64)
    grid = style_gallery.mixing_grid(net, a, b[:4]).view(7, 5, 1, 32, 32)
    torch.testing.assert_close(grid[1:, 0], net(a, noise="const"))
    torch.testing.assert_close(grid[0, 1:], net(b[:4], noise="const"))
    assert (grid[0, 0] == -1).all()
    styles, others = net.mapping(a), net.mapping(b)
    for row, copied in ((1, slice(0, 1)), (2, slice(0, 1)), (3, slice(1, 3)), (6, slice(3, 8))):
        mixed = styles[row - 1].clone()
        mixed[copied] = others[2, copied]
        torch.testing.assert_close(grid[row, 3], net.synthesis(mixed[None], "const")[0])


def test_noise_panels():
    net, z = generator(), torch.randn(3, 64)
    everywhere, none, fine, coarse = style_gallery.noise_ablation(net, z).view(4, 3, 1, 32, 32)
    torch.testing.assert_close(everywhere, net(z, noise="const"))
    torch.testing.assert_close(none, net(z, noise="none"))
    assert not torch.allclose(fine, none)
    assert not torch.allclose(coarse, none)
    assert not torch.allclose(fine, coarse)
    maps = style_gallery.noise_deviation(net, z, draws=4).view(4, 3, 1, 32, 32)
    assert maps.max() == 1
    assert (maps[1] == -1).all()  # without noise nothing moves


def biggan():
    torch.manual_seed(0)
    model = gencore.create_model("biggan_128", **(biggan_gallery.SMALL | {"width": 8}))
    model.generator.train()(model.sample_latent(32), model.sample_classes(32))
    return model, model.generator.eval()


def test_digits_by_class():
    model, net = biggan()
    grid = biggan_gallery.by_class(model, net, columns=3).view(10, 3, 1, 32, 32)
    z = model.sample_latent(3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(grid[7], net(z, torch.full((3,), 7)))
    walk = biggan_gallery.between_classes(model, net, columns=5).view(9, 5, 1, 32, 32)
    z = model.sample_latent(1, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(walk[2, 0], net(z, torch.tensor([2]))[0])
    torch.testing.assert_close(walk[2, 4], net(z, torch.tensor([3]))[0])
    assert not torch.allclose(walk[2, 2], walk[2, 0])


def test_truncation_of_digits(monkeypatch):
    """Codes and statistics are those of each threshold, and the network is afterwards what it was."""
    model, net = biggan()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    calls, seen = [], []
    draw, run = model.sample_latent, net.forward

    def sample(count, **options):
        calls.append(options["truncation"])
        return draw(count, **options)

    def forward(z, y):
        seen.append((net.training, z.abs().max().item()))
        return run(z, y)

    monkeypatch.setattr(model, "sample_latent", sample)
    monkeypatch.setattr(net, "forward", forward)
    rows = biggan_gallery.truncations(model, net)
    assert rows.shape == (20 * len(biggan_gallery.THRESHOLDS), 1, 32, 32)
    assert list(dict.fromkeys(calls)) == list(biggan_gallery.THRESHOLDS)
    assert all(0.7 * threshold < largest <= threshold for threshold, (_, largest) in zip(calls, seen, strict=True))
    assert [training for training, _ in seen] == [*[True] * 8, False] * len(biggan_gallery.THRESHOLDS)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_attention_of_digits():
    model, net = biggan()
    grid = biggan_gallery.attention(model, net, count=2).view(5, 2, 1, 32, 32)
    z = model.sample_latent(2, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(grid[0], net(z, torch.tensor([0, 1])))
    for point in range(1, 5):
        assert grid[point].amax((1, 2, 3)).tolist() == [1, 1]
    assert not torch.allclose(grid[1], grid[2])


def test_noisy_restored_and_clean():
    model, clean = gencore.create_model("red_net_10", width=4), torch.rand(3, 1, 8, 8)
    torch.nn.init.zeros_(model.to_image.weight)  # which restores nothing
    noisy, restored, last = restoration_gallery.restored(model, clean).view(3, 3, 1, 8, 8)
    assert torch.equal(noisy, restored)
    assert torch.equal(last, clean)
    assert abs((noisy - clean).std() - 100 / 255) < 0.1


def test_codes_are_drawn():
    """From q(z | x), not its mean: an encoder that says nothing gives the prior."""
    model, digits = gencore.create_model("vae_32_latent2", width=4, hidden=8), torch.rand(500, 1, 32, 32)
    torch.nn.init.zeros_(model.encoder[-1].weight)
    codes = vae_gallery.drawn_codes(model, digits)
    assert codes.shape == (500, 2)
    assert abs(codes.std() - 1) < 0.1
    torch.nn.init.constant_(model.encoder[-1].bias[2:], -20)  # the logarithms of the variances
    assert vae_gallery.drawn_codes(model, digits).abs().max() < 1e-3


def test_bad_arguments(tmp_path, capsys):
    with pytest.raises(ValueError, match="there is no 'cubism'; there are progan, stylegan2, sngan, biggan"):
        run_gallery("cubism", tmp_path)
    with pytest.raises(ValueError, match="must be positive, got seconds=0"):
        run_gallery("progan", tmp_path, seconds=0)
    assert main(["gallery", "cubism", "--out", str(tmp_path)]) == 2
    assert "error: gallery: there is no 'cubism'" in capsys.readouterr().err
