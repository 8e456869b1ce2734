"""A folder of one's own images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gencore.optional import require

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_folder(path: str | Path, *, size: int = 64, channels: int = 3) -> Tensor:
    """Every image under ``path`` (sub-folders too, in order of name), cropped to its middle square and resized.

    Args:
        path: the folder.
        size: height and width of the result, at least 1.
        channels: 3 for RGB, 1 for grey; images of any other mode (palette, alpha, 16 bit) are converted.

    Returns:
        ``[N, channels, size, size]``, float32 in [-1, 1].

    Raises:
        gencore.optional.MissingPackage: if pillow is not installed.
        FileNotFoundError: if there is no such folder, or no image in it.
        ValueError: if ``size`` or ``channels`` is out of range, or a file cannot be read as an image (the message
            names it).
    """
    image_module = require("PIL.Image", extra="data", purpose="image_folder")
    ops = require("PIL.ImageOps", extra="data", purpose="image_folder")
    if channels not in (1, 3):
        raise ValueError(f"image_folder: channels must be 1 or 3, got {channels}")
    if size < 1:
        raise ValueError(f"image_folder: size must be at least 1, got {size}")
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"image_folder: there is no folder {folder}")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"image_folder: no image in {folder} (looked for {', '.join(SUFFIXES)})")
    images = []
    for file in files:
        try:
            with image_module.open(file) as opened:
                picture = ops.exif_transpose(opened).convert("RGB" if channels == 3 else "L")
        except OSError as error:
            raise ValueError(f"image_folder: {file} cannot be read as an image: {error}") from error
        square = ops.fit(picture, (size, size), image_module.Resampling.LANCZOS)
        images.append(torch.from_numpy(np.array(square)).view(size, size, channels))
    return torch.stack(images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
