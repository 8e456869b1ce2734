"""The public ops. Each takes ``impl=`` and is differentiable; :func:`gencore.explain` says what runs and why."""

from gencore.ops.reparameterize_kl import reparameterize_kl

__all__ = ["reparameterize_kl"]
