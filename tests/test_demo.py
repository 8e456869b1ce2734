"""The demonstration: its pictures, its timings, and the report as a whole."""

import base64
import dataclasses
import io
import re

import pytest
import torch
from PIL import Image

import gencore
import gencore.apps.demo
from gencore import memory
from gencore.apps import pictures, step_timing
from gencore.apps.demo import run_demo
from gencore.cli import main
from gencore.train import GANTraining


def small_gan():
    return GANTraining(gencore.create_model("dcgan_32", channels=1, width=4))


# --- pictures --------------------------------------------------------------------------------------------------------


def test_grid(tmp_path):
    images = torch.stack([torch.full((1, 2, 3), value) for value in (-1.0, 0.0, 1.0, 5.0, 0.5)])
    pictures.save_grid(images, tmp_path / "grid.png", columns=2, scale=2)
    pixels = torch.tensor(list(Image.open(tmp_path / "grid.png").get_flattened_data())).view(12, 12)
    expected = torch.tensor([[0, 128], [255, 255], [191, 0]])  # the place left over is black
    assert torch.equal(pixels, expected.repeat_interleave(4, 0).repeat_interleave(6, 1))


def test_grid_in_colour(tmp_path):
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    pictures.save_grid(red, tmp_path / "grid.png", columns=1, scale=1)
    assert Image.open(tmp_path / "grid.png").getpixel((3, 3)) == (255, 0, 0)


def test_reconstructions_stand_beside_their_inputs():
    model = gencore.create_model("vae_32")
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    grid = pictures.reconstructions(model, images)
    assert torch.equal(grid[::2], images)
    mu, _ = model.encode((images + 1) / 2)
    torch.testing.assert_close(grid[1::2], model.decode(mu) * 2 - 1)


def test_samples_stand_beside_their_nearest_neighbours():
    train = torch.randn(20, 1, 4, 4)
    samples = train[[3, 17]] + 0.01
    grid = pictures.beside_nearest(samples, train)
    assert torch.equal(grid, torch.stack([samples[0], train[3], samples[1], train[17]]))


def test_walks_start_and_end_where_they_should():
    model = gencore.create_model("vae_32")
    start, end = torch.rand(2, 3, 1, 32, 32) * 2 - 1
    grid = pictures.vae_walk(model, start, end, columns=5).view(3, 5, 1, 32, 32)
    torch.testing.assert_close(grid[:, 0], pictures.reconstructions(model, start)[1::2])
    torch.testing.assert_close(grid[:, -1], pictures.reconstructions(model, end)[1::2])

    gan = small_gan()
    z = gan.model.sample_latent(4, generator=torch.Generator().manual_seed(9))
    grid = pictures.gan_walk(gan, rows=2, columns=4, seed=9).view(2, 4, 1, 32, 32)
    torch.testing.assert_close(grid[:, 0], gan.sample(z[:2]))
    torch.testing.assert_close(grid[:, -1], gan.sample(z[2:]))


def test_manifold_is_laid_out_like_the_plane():
    class Plane(torch.nn.Module):
        def decode(self, z):
            return (z / 10 + 1) / 2

    z = pictures.manifold(Plane(), 3) * 10
    third = 0.9674215661  # the normal distribution's quantile at 5/6
    left, middle, right = -third, 0.0, third
    expected = [[x, y] for y in (right, middle, left) for x in (left, middle, right)]
    torch.testing.assert_close(z, torch.tensor(expected), rtol=0, atol=1e-5)


def test_curves(tmp_path):
    history = [{"loss": 100.0 / (i + 1), "kl": float(i)} for i in range(40)]
    pictures.save_curves({"a": history, "b": history[:1]}, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 600


# --- timings ---------------------------------------------------------------------------------------------------------


def test_compare_with_torch():
    models = [("dcgan_32", {"width": 4, "channels": 1}), ("vae_32", {"width": 4, "hidden": 8})]
    timings = step_timing.compare_with_torch(models, batch=4, seconds=0, rounds=3)
    assert {(t.what, t.other) for t in timings} == {
        (f"{name}, batch 4", f"torch.nn, {peer}")
        for name in ("dcgan_32", "vae_32")
        for peer in ("eager", "eager, channels_last")
    }
    for timing in timings:
        assert timing.status == "ok"
        assert timing.ours == "gencore, channels_last"
        assert timing.low <= timing.ratio <= timing.high
        assert timing.ours_per_second > 0
        assert timing.other_per_second > 0


def test_wrong_gradients_get_no_time(monkeypatch):
    honest = gencore.nn.layers.LAYERS["gencore"]

    class Crooked(torch.nn.BatchNorm2d):
        def __init__(self, features, **activation):
            super().__init__(features)

    monkeypatch.setitem(gencore.nn.layers.LAYERS, "gencore", dataclasses.replace(honest, BatchNorm2d=Crooked))
    models = [("dcgan_32", {"width": 4, "channels": 1})]
    (timing,) = step_timing.compare_with_torch(models, batch=4, seconds=0, rounds=1)
    assert timing.status.startswith("wrong: ")
    assert timing.ratio != timing.ratio


@pytest.mark.skipif(not memory.is_available(), reason="the caching allocator is not built")
def test_compare_allocators():
    images = torch.rand(4, 1, 32, 32) * 2 - 1
    timing = step_timing.compare_allocators("small", small_gan(), images, rounds=2, steps=1)
    assert timing.what == "small, batch 4"
    assert timing.low <= timing.ratio <= timing.high
    assert timing.ours_per_second > 0
    assert not memory.is_enabled()


# --- the whole -------------------------------------------------------------------------------------------------------


def test_demo(tmp_path, capsys):
    assert main(["demo", "--steps", "2", "--no-op-table", "--out", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    page = (tmp_path / "demo" / "report.html").read_text()

    names = {path.stem for path in (tmp_path / "demo").glob("*.png")}
    wanted = {"samples_dcgan", "samples_vae", "reconstructions", "neighbours", "walk_dcgan", "walk_vae"}
    wanted |= {"manifold", "losses"}
    assert names == wanted
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert {base64.b64decode(data) for data in embedded} == {p.read_bytes() for p in (tmp_path / "demo").glob("*.png")}
    for data in embedded:
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    assert len(re.findall(r"(src|href)=", page)) == len(embedded)  # nothing else is fetched from anywhere

    for text in (printed, page):
        assert "dcgan_32, batch 32" in text
        assert "torch.nn" in text
    assert "2/2" in printed
    assert "report.html" in printed


def test_demo_from_an_installed_package(tmp_path, monkeypatch):
    """Without the source tree there is nothing to time with: the report says so, and has its pictures all the same."""
    monkeypatch.setattr(gencore.apps.demo, "find_spec", lambda name: None)
    page = run_demo(tmp_path, steps=1).read_text()
    assert "no timings: the benchmarks are in the source tree only" in page
    assert "Training steps beside" not in page
    assert page.count("data:image/png") == 8


def test_demo_keeps_to_its_time(tmp_path, monkeypatch):
    given = []

    def fit(training, images, *, steps, seconds, **options):
        given.append((steps, seconds))
        training.history.append(training.step(images[:2]))

    monkeypatch.setattr(gencore.apps.demo, "fit", fit)
    monkeypatch.setattr(gencore.apps.demo, "find_spec", lambda name: None)
    run_demo(tmp_path, seconds=100)
    assert [steps for steps, _ in given] == [2500, 2500, 4800]
    first, second, last = (seconds for _, seconds in given)
    assert 0 < first < 16
    assert 0 < second < 20
    assert 30 - 10 < last < 92


def test_demo_refuses(tmp_path, monkeypatch, capsys):
    assert main(["demo", "--steps", "0", "--out", str(tmp_path)]) == 2
    assert "must be positive, got seconds=220.0, steps=0" in capsys.readouterr().err
    monkeypatch.setattr(gencore.optional, "find_spec", lambda name: None)
    assert main(["demo", "--steps", "1", "--out", str(tmp_path)]) == 2
    assert "needs the package matplotlib; `pip install 'gencore[bench]'`" in capsys.readouterr().err
