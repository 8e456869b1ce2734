"""Synchronised (cross-replica) batch norm: statistics over the batches of all processes, on any backend."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gencore import reference
from gencore.nn.batchnorm import _BatchNormAct, running_statistics
from gencore.nn.conditional import ConditionalBatchNorm2d
from gencore.ops import batch_norm_act, conditional_batch_norm, norm_core
from gencore.ops._checks import check_device, check_floating, check_same, compute_dtype
from gencore.ops._library import differentiate
from gencore.ops.norm_core import check_vector


class SyncBatchNorm(_BatchNormAct, torch.nn.SyncBatchNorm):
    """``torch.nn.SyncBatchNorm`` for ``[N, C, ...]``, 2-d to 5-d, with a fused activation; on CPUs (gloo) too.

    In training, the mean and variance are those of the joint batch of all processes of the group, each weighted by the
    number of its samples: batches may differ in size, and a process may have none. Without an initialised process
    group, with one process alone, and in evaluation it is :class:`gencore.nn.BatchNorm2d`. Every process must call the
    layer, its backward and the backward of that equally often: derivatives of every order sum over the processes too.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as in ``torch.nn``.
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
        device: Any = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **kwargs)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """``activation(batch_norm(input) + residual)`` by the joint statistics."""
        if not _is_joint(self):
            return super().forward(input, residual)
        _check("SyncBatchNorm", self, input)
        if residual is not None:
            check_same("SyncBatchNorm", "residual", residual, "input", input)
        impl = batch_norm_act.OP.select(self.impl, input)
        return _normalise(self, input, residual, self.weight, self.bias, impl)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """``module`` with every batch norm layer, gencore's or PyTorch's, conditional ones included, replaced by a
        synchronised one that shares its parameters and buffers. A batch norm itself is returned replaced; other modules
        are changed in place."""
        if isinstance(module, SyncConditionalBatchNorm2d | cls):
            return module
        if isinstance(module, ConditionalBatchNorm2d):
            return SyncConditionalBatchNorm2d.of(module, process_group)
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
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


class SyncConditionalBatchNorm2d(ConditionalBatchNorm2d):
    """:class:`gencore.nn.ConditionalBatchNorm2d` by the statistics of all processes, as :class:`SyncBatchNorm` takes
    them: BigGAN's cross-replica batch norm.

    Args:
        num_features, gain, bias: as in :class:`gencore.nn.ConditionalBatchNorm2d`.
        process_group: the processes that share statistics; None for all.
        options: the others of :class:`gencore.nn.ConditionalBatchNorm2d`.
    """

    def __init__(
        self, num_features: int, gain: nn.Module, bias: nn.Module, *, process_group: Any = None, **options: Any
    ) -> None:
        super().__init__(num_features, gain, bias, **options)
        self.process_group = process_group

    @classmethod
    def of(cls, layer: ConditionalBatchNorm2d, process_group: Any = None) -> SyncConditionalBatchNorm2d:
        """The synchronised twin of ``layer``, with its layers of gain and bias and its buffers."""
        names = ("gain_offset", "eps", "momentum", "track_running_stats", "activation", "negative_slope", "impl")
        options = {name: getattr(layer, name) for name in names}
        twin = cls(layer.num_features, layer.gain, layer.bias, process_group=process_group, **options)
        twin._buffers.update(layer._buffers)
        twin.training = layer.training
        return twin

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """:class:`gencore.nn.ConditionalBatchNorm2d`'s, by the joint statistics."""
        if not _is_joint(self):
            return super().forward(input, condition)
        where = "SyncConditionalBatchNorm2d"
        _check(where, self, input)
        gain, bias = self.affine_of(condition)
        check_vector(where, "gain", gain, input, per_sample=True)
        check_vector(where, "bias", bias, input, per_sample=True)
        return _normalise(self, input, None, gain, bias, conditional_batch_norm.OP.select(self.impl, input))


def _is_joint(layer: Any) -> bool:
    """Whether statistics are taken, and over more than one process."""
    uses_batch = layer.training or layer.running_mean is None
    return uses_batch and dist.is_initialized() and dist.get_world_size(layer.process_group) > 1


def _check(where: str, layer: Any, x: Tensor) -> None:
    """What batch norm refuses, before the other processes wait for this one."""
    check_floating(where, "input", x)
    if not 2 <= x.dim() <= 5:
        raise ValueError(f"{where}: input must have 2 to 5 dimensions, [N, C, ...], got {tuple(x.shape)}")
    if x.shape[1] != layer.num_features:
        raise RuntimeError(
            f"{where}: input must have {layer.num_features} channels (num_features), got {tuple(x.shape)}"
        )
    if not layer.eps >= 0:
        raise ValueError(f"{where}: eps must not be negative, got {layer.eps}")
    for name in ("weight", "running_mean"):
        value = getattr(layer, name, None)
        if value is not None:
            check_device(where, name, value, "input", x)


def _normalise(
    layer: Any, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, impl: str
) -> Tensor:
    """The joint norm with the layer's settings; moves its running statistics."""
    running = running_statistics(layer)
    config = layer.eps, layer.activation or "identity", layer.negative_slope, impl
    y, mean, var, count = _Forward.apply(x, residual, weight, bias, layer.process_group, *config)
    if running["running_mean"] is not None:
        moved = {"running_mean": mean, "running_var": var * (count / (count - 1))}
        for name, value in moved.items():
            buffer = running[name]
            # An empty joint batch has no statistics. Whether it is empty, the host need not wait for a GPU to know.
            buffer.copy_(torch.where(count > 0, buffer.lerp(value.to(buffer.dtype), running["momentum"]), buffer))
    return y


class _Forward(torch.autograd.Function):
    """weight and bias: ``[C]`` or ``[N, C]``. Returns y, and the joint mean, variance and count (0-d float64), without
    gradients."""

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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        compute = compute_dtype(x.dtype)
        mean, var, count = _joint_moments(x, compute, group)
        # With two values here, there are enough; only otherwise the host waits for the sum.
        if x.numel() // max(x.shape[1], 1) < 2 and count == 1:
            raise ValueError(
                "SyncBatchNorm: expected more than 1 value per channel when training, "
                f"got input size {tuple(x.shape)} in a joint batch of one value"
            )
        w, b = _to(weight, compute), _to(bias, compute)
        config = eps, activation, negative_slope
        if impl != "reference":
            y = norm_core.FORWARD(x, residual, w, b, mean, var, False, False, *config, impl)[0]
        elif w is not None and b is not None and w.dim() == 2:
            y = reference.conditional_batch_norm(x, w, b, mean, var, False, 0.0, *config)
        else:
            y = reference.batch_norm_act(x, w, b, mean, var, False, 0.0, *config, residual).to(x.dtype)
        ctx.save_for_backward(x, residual, weight, bias, mean, var, count)
        ctx.config = group, *config, impl
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Any) -> Any:
        x, residual, weight, bias, mean, var, count = ctx.saved_tensors
        compute = mean.dtype
        affine = _to(weight, compute), _to(bias, compute)
        grad_x, grad_weight, grad_bias, grad_residual = _Backward.apply(
            grad_y, x, residual, *affine, mean, var, count, *ctx.config
        )
        if residual is not None and ctx.config[2] == "identity":
            grad_residual = grad_y
        return (
            grad_x,
            None if residual is None else grad_residual,
            None if weight is None else grad_weight.to(weight.dtype),
            None if bias is None else grad_bias.to(bias.dtype),
            *[None] * 5,
        )


class _Backward(torch.autograd.Function):
    """Gradients of x (through the joint statistics too), of weight and bias (over this process's samples), and of the
    residual. Its own derivative is that of the formula, with sums over the processes in the place of means."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_y: Tensor,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        group: Any,
        eps: float,
        activation: str,
        negative_slope: float,
        impl: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        ctx.save_for_backward(grad_y, x, residual, weight, bias, mean, var, count)
        ctx.group, ctx.config = group, (eps, activation, negative_slope)
        inputs = grad_y, x, residual, weight, bias, mean, var, False, False, *ctx.config
        if impl == "reference":
            grad_x, grad_weight, grad_bias, grad_residual = reference.norm_act_backward(*inputs)
        else:
            grad_x, grad_weight, grad_bias, grad_residual = norm_core.BACKWARD(*inputs, impl)
        # What is missing of grad_x is the path through the statistics: two sums over the joint batch.
        sums = torch.stack([_channel_sum(v, weight) for v in (grad_bias, grad_weight)]).to(mean.dtype)
        dist.all_reduce(sums, group=group)
        shape = (-1, *[1] * (x.dim() - 2))
        invstd = (var + eps).rsqrt()
        slope, offset = invstd.square() * sums[1] / count, invstd * sums[0] / count
        grad_x = (grad_x - offset.view(shape) - (x - mean.view(shape)) * slope.view(shape)).to(x.dtype)
        # Without an activation the residual's gradient is grad_y.
        wants_residual = residual is not None and activation != "identity"
        return grad_x, grad_weight, grad_bias, grad_residual if wants_residual else None

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        *inputs, mean, var, count = ctx.saved_tensors
        dims = [d for d in range(inputs[1].dim()) if d != 1]

        def average(v: Tensor) -> Tensor:
            return _SumOverProcesses.apply(v.sum(dims, keepdim=True), ctx.group) / count

        backward: Any = reference.norm_act_backward
        rest = mean, var, True, False, *ctx.config, average
        return *differentiate(lambda *values: backward(*values, *rest), inputs, grad_outputs), *[None] * 8


class _SumOverProcesses(torch.autograd.Function):
    """Losses add up over the processes, so the gradient of a sum over them is such a sum again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _SumOverProcesses.apply(grad, ctx.group), None


def _to(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else value.to(dtype).contiguous()


def _channel_sum(grad: Tensor, weight: Tensor | None) -> Tensor:
    """Of weight and gradient, over the samples if each has its own."""
    product = grad if weight is None else grad * weight
    return product.sum(0) if product.dim() == 2 else product


def _joint_moments(x: Tensor, compute: torch.dtype, group: Any) -> tuple[Tensor, Tensor, Tensor]:
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
    return mean.to(compute), (squared / total.clamp_min(1)).to(compute), total
