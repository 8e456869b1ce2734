"""Synchronised (cross-replica) batch norm: statistics over the batches of all processes, on any backend."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gencore import reference
from gencore.nn.batchnorm import _BatchNormAct, running_statistics
from gencore.ops import norm_core
from gencore.ops._checks import check_same, compute_dtype
from gencore.ops.batch_norm_act import OP


class SyncBatchNorm(_BatchNormAct):
    """``torch.nn.SyncBatchNorm`` for ``[N, C, ...]``, 2-d to 5-d, with a fused activation; on CPUs (gloo) too.

    In training, the mean and variance are those of the joint batch of all processes of the group, each weighted by the
    number of its samples: batches may differ in size, and a process may have none. Without an initialised process
    group, with one process alone, and in evaluation it is :class:`gencore.nn.BatchNorm2d`. Every process must call the
    layer, and its backward, equally often. First derivatives only.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as in ``torch.nn``.
        process_group: the processes that share statistics; None for all.
        activation, negative_slope, impl: as in :class:`gencore.nn.BatchNorm2d`.

    Raises:
        ValueError: in training, when the joint batch has one value a channel.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **kwargs)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """``activation(batch_norm(input) + residual)`` by the joint statistics."""
        uses_batch = self.training or self.running_mean is None
        if not uses_batch or not dist.is_initialized() or dist.get_world_size(self.process_group) == 1:
            return super().forward(input, residual)
        self._check_input_dim(input)
        if residual is not None:
            check_same("SyncBatchNorm", "residual", residual, "input", input)
        running = running_statistics(self)
        config = self.eps, self.activation or "identity", self.negative_slope, OP.select(self.impl, input)
        group = self.process_group
        y, mean, var, count = _SyncNorm.apply(input, residual, self.weight, self.bias, group, *config)
        if running["running_mean"] is not None:
            unbiased = var * (count / (count - 1))
            running["running_mean"].lerp_(mean.to(running["running_mean"].dtype), running["momentum"])
            running["running_var"].lerp_(unbiased.to(running["running_var"].dtype), running["momentum"])
        return y

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """``module`` with every batch norm layer, gencore's or PyTorch's, replaced by a synchronised one that shares
        its parameters and buffers. A batch norm itself is returned replaced; other modules are changed in place."""
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and not isinstance(module, cls):
            epilogue = {k: getattr(module, k) for k in ("activation", "negative_slope", "impl") if hasattr(module, k)}
            converted = cls(
                module.num_features,
                module.eps,
                module.momentum,
                module.affine,
                module.track_running_stats,
                process_group,
                **epilogue,
            )
            converted._parameters.update(module._parameters)
            converted._buffers.update(module._buffers)
            converted.training = module.training
            return converted
        for name, child in module.named_children():
            setattr(module, name, cls.convert_sync_batchnorm(child, process_group))
        return module


class _SyncNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        group: Any,
        eps: float,
        activation: str,
        negative_slope: float,
        impl: str,
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        compute = compute_dtype(x.dtype)
        mean, var, count = _joint_moments(x, compute, group)
        if count == 1:
            raise ValueError(
                "SyncBatchNorm: expected more than 1 value per channel when training, "
                f"got input size {tuple(x.shape)} in a joint batch of one value"
            )
        w, b = (None if v is None else v.to(compute) for v in (weight, bias))
        config = eps, activation, negative_slope
        if impl == "reference":
            y = reference.batch_norm_act(x, w, b, mean, var, False, 0.0, *config, residual).to(x.dtype)
        else:
            y = norm_core.FORWARD(x, residual, w, b, mean, var, False, False, *config, impl)[0]
        ctx.save_for_backward(x, residual, w, b, mean, var)
        ctx.config, ctx.impl, ctx.group, ctx.count = config, impl, group, count
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, *_: Any) -> Any:
        x, residual, weight, bias, mean, var = ctx.saved_tensors
        inputs = grad_y, x, residual, weight, bias, mean, var, False, False, *ctx.config
        if ctx.impl == "reference":
            grad_x, grad_weight, grad_bias, grad_residual = reference.norm_act_backward(*inputs)
        else:
            grad_x, grad_weight, grad_bias, grad_residual = norm_core.BACKWARD(*inputs, ctx.impl)
        if residual is not None and ctx.config[1] == "identity":
            grad_residual = grad_y
        # What is missing of grad_x is the path through the statistics: two sums over the joint batch.
        sums = torch.stack((grad_bias, grad_weight)).to(mean.dtype)
        dist.all_reduce(sums, group=ctx.group)
        invstd = (var + ctx.config[0]).rsqrt()
        scale = invstd if weight is None else invstd * weight
        shape = (-1, *[1] * (x.dim() - 2))
        slope = scale * invstd * sums[1] / ctx.count
        offset = scale * sums[0] / ctx.count
        grad_x = (grad_x - offset.view(shape) - (x - mean.view(shape)) * slope.view(shape)).to(x.dtype)
        needs = ctx.needs_input_grad
        return (
            grad_x,
            grad_residual if residual is not None else None,
            grad_weight.to(weight.dtype) if needs[2] else None,
            grad_bias.to(bias.dtype) if needs[3] else None,
            *[None] * 5,
        )


def _joint_moments(x: Tensor, compute: torch.dtype, group: Any) -> tuple[Tensor, Tensor, float]:
    """Mean, biased variance and number of values a channel over the batches of all processes."""
    channels = x.shape[1]
    count = x.numel() // max(channels, 1)
    # Merged in float64: a process's mean, its sum of squared deviations, and how much they count.
    local = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if count > 0:
        var, mean = torch.var_mean(x.to(compute), dim=[d for d in range(x.dim()) if d != 1], correction=0)
        local = torch.cat([mean.double(), var.double() * count, local.new_tensor([count])])
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local, group=group)
    joint = torch.stack(parts)
    means, squares, counts = joint[:, :channels], joint[:, channels:-1], joint[:, -1:]
    total = counts.sum()
    mean = (means * counts).sum(0) / total.clamp_min(1)
    squared = (squares + counts * (means - mean).square()).sum(0)
    return mean.to(compute), (squared / total.clamp_min(1)).to(compute), float(total)
