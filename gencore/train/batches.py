"""Batches for :func:`gencore.train.fit`, from tensors, data sets and loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

# Images; images and classes; a data set of either, one by one; or an iterable of batches of either.
Data = Tensor | tuple[Tensor, Tensor] | Dataset[Any] | Iterable[Any]
Batch = tuple[Tensor, Tensor | None]


def batches(data: Data, batch_size: int, seed: int, *, start: int, stop: int) -> Iterator[Batch]:
    """Batches number ``start`` to ``stop - 1``: images, and classes where the data have them.

    Which images of a tensor or a data set are in a batch depends on nothing but its number.

    Raises:
        ValueError: ``batch_size`` is not in 1..N, there is not one class an image, or an iterable has no more batches.
        TypeError: the data, or a batch, are nothing of the kind.
    """
    if isinstance(data, Tensor | tuple | Dataset) and not isinstance(data, IterableDataset):
        count, take = _indexed(data)
        if not 0 < batch_size <= count:
            raise ValueError(f"fit: batch_size must be in 1..{count} (the number of images), got {batch_size}")
        yield from _shuffled(count, take, batch_size, seed, start, stop)
    elif isinstance(data, Iterable):
        yield from _repeated(data, stop - start)
    else:
        raise TypeError(
            "fit: data must be a Tensor, a tuple (images, classes), a Dataset or an iterable of batches, got "
            f"{type(data).__name__}"
        )


def _indexed(data: Tensor | tuple[Tensor, Tensor] | Dataset[Any]) -> tuple[int, Callable[[Tensor], Any]]:
    """The number of images, and what gives those of some numbers as a batch."""
    if isinstance(data, Dataset):
        items: Any = data
        return len(items), lambda chosen: default_collate([items[i] for i in chosen.tolist()])
    images, classes = _pair(data)
    if classes is None:
        return len(images), lambda chosen: images[chosen.to(images.device)]
    if classes.shape != images.shape[:1]:
        raise ValueError(f"fit: classes must be one an image, [{len(images)}], got {tuple(classes.shape)}")
    return len(images), lambda chosen: (images[chosen.to(images.device)], classes[chosen.to(classes.device)])


def _shuffled(
    count: int, take: Callable[[Tensor], Any], batch_size: int, seed: int, start: int, stop: int
) -> Iterator[Batch]:
    per_epoch = count // batch_size
    order, epoch = torch.empty(0), -1
    for number in range(start, stop):
        if number // per_epoch != epoch:
            epoch = number // per_epoch
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        first = number % per_epoch * batch_size
        yield _pair(take(order[first : first + batch_size]))


def _repeated(data: Iterable[Any], count: int) -> Iterator[Batch]:
    done = 0
    while done < count:
        before = done
        for batch in data:
            yield _pair(batch)
            done += 1
            if done == count:
                return
        if done == before:
            raise ValueError(
                f"fit: data gave {done} batches and then no more, wanted {count}; it must be something that can be "
                "gone through again, such as a DataLoader"
            )


def _pair(batch: Any) -> Batch:
    """A loader gives images, lists of images alone, or lists of images and classes."""
    parts = [batch] if isinstance(batch, Tensor) else batch
    if not isinstance(parts, list | tuple) or len(parts) not in (1, 2) or not all(isinstance(p, Tensor) for p in parts):
        kinds = [type(p).__name__ for p in parts] if isinstance(parts, list | tuple) else type(parts).__name__
        raise TypeError(f"fit: a batch must be images or (images, classes), Tensors, got {kinds}")
    return parts[0], parts[1] if len(parts) == 2 else None
