"""``gencore gallery``: every gallery trains, and writes pictures of what it should show."""

import io

import pytest
import torch
from PIL import Image
from rich.console import Console

import gencore
from gencore.apps import style_gallery
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
    for row, copied in ((1, slice(0, 2)), (2, slice(0, 2)), (3, slice(2, 4)), (6, slice(4, 8))):
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


def test_bad_arguments(tmp_path, capsys):
    with pytest.raises(ValueError, match="there is no 'cubism'; there are progan, stylegan2"):
        run_gallery("cubism", tmp_path)
    with pytest.raises(ValueError, match="must be positive, got seconds=0"):
        run_gallery("progan", tmp_path, seconds=0)
    assert main(["gallery", "cubism", "--out", str(tmp_path)]) == 2
    assert "error: gallery: there is no 'cubism'" in capsys.readouterr().err
