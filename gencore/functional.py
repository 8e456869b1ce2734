"""The public ops. Each takes ``impl=`` and is differentiable; :func:`gencore.explain` says what runs and why."""

from gencore.ops.batch_norm_act import batch_norm_act
from gencore.ops.reparameterize_kl import reparameterize_kl

__all__ = ["batch_norm_act", "reparameterize_kl"]
