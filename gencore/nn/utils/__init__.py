"""Utilities for layers, under the names that they have in ``torch.nn.utils``."""

from gencore.nn.utils import parametrizations, statistics

__all__ = ["parametrizations", "statistics"]
