"""Layers: drop-ins for ``torch.nn`` on gencore's ops."""

from gencore.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]
