"""Samples, PyTorch's own version and bad input of ``upscale2d_conv2d`` and ``conv2d_downscale2d``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as TF
from hypothesis import strategies as st
from torch import Tensor

from gencore.reference.activation import activate
from tests.opspec import ErrorInput, OpSpec, Sample


def rescaled_spec(function: Callable[..., Tensor]) -> OpSpec:
    """The ``OpSpec`` of either."""
    up = function.__name__ == "upscale2d_conv2d"

    def sample(
        label: str,
        n: int,
        channels: tuple[int, int],
        size: tuple[int, int],
        kernel: int = 3,
        *,
        bias: bool = True,
        residual: bool = False,
        scale: str = "",
        seed: int = 6,
        **options: Any,
    ) -> Sample:
        """``size``: of the smaller image; the larger one of ``conv2d_downscale2d`` has an odd width besides."""
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *s: torch.randn(s, dtype=torch.float64, generator=generator)  # noqa: E731
        inner, outer = channels
        scales = {"sample": (n, outer), "channel": (outer,), "all": (1,)}
        small, large = size, (2 * size[0], 2 * size[1] + (not up))
        tensors = {
            "input": draw(n, inner, *(small if up else large)),
            "weight": draw(outer, inner, kernel, kernel) / (inner * kernel**2) ** 0.5,
            "bias": draw(outer) if bias else None,
            "scale": 1 + 0.5 * draw(*scales[scale]) if scale else None,
            "residual": draw(n, outer, *(large if up else small)) if residual else None,
            "slopes": draw(outer).sigmoid() if options.get("activation") == "prelu" else None,
        }
        return Sample(label, tensors, options, batch=("scale",) if scale == "sample" else ())

    def samples() -> list[Sample]:
        return [
            sample("leaky_relu", 2, (5, 9), (3, 4), activation="leaky_relu", negative_slope=0.2),
            sample("residual", 2, (4, 3), (4, 2), residual=True, activation="relu"),
            sample("scaled", 2, (3, 5), (2, 3), scale="sample", activation="tanh"),
            sample("scaled_channels", 2, (6, 17), (3, 2), scale="channel", residual=True, bias=False),
            sample("scaled_silu", 3, (18, 20), (2, 2), scale="all", activation="silu"),
            sample("filtered", 2, (18, 40), (9, 8), bias=False),
            sample("prelu", 2, (2, 3), (3, 3), activation="prelu"),
            sample("kernel_5", 2, (3, 4), (3, 4), 5),
            sample("kernel_1", 2, (3, 4), (3, 4), 1, residual=True),
            sample("tiny", 1, (2, 2), (1, 2), activation="sigmoid", scale="sample"),
            sample("one_pixel", 3, (7, 5), (1, 1)),
            sample("empty_batch", 0, (3, 2), (2, 3)),
        ]

    @st.composite
    def shapes(draw: st.DrawFn) -> Sample:
        side, few, flag = st.integers(1, 6), st.integers(1, 20), st.booleans()
        return sample(
            "drawn",
            draw(st.integers(1, 3)),
            (draw(few), draw(few)),
            (draw(side), draw(side)),
            draw(st.sampled_from([1, 3, 3, 3, 5])),
            bias=draw(flag),
            residual=draw(flag),
            scale=draw(st.sampled_from(["", "sample", "channel", "all"])),
            seed=draw(st.integers(0, 99)),
            activation=draw(st.sampled_from(["identity", "tanh", "silu", "sigmoid"])),
        )

    def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
        x, weight, bias, scale = (tensors[name] for name in ("input", "weight", "bias", "scale"))
        assert x is not None
        assert weight is not None
        if scale is not None and scale.dim() < 2:
            weight, scale = weight * scale.expand(len(weight)).view(-1, 1, 1, 1), None
        x = TF.interpolate(x, scale_factor=2.0, mode="nearest") if up else x
        y = TF.conv2d(x, weight, None, 1, weight.shape[-1] // 2)
        y = y if up else TF.avg_pool2d(y, 2)
        y = y if scale is None else y * scale[:, :, None, None]
        y = y if bias is None else y + bias.view(-1, 1, 1)
        y = y if tensors["residual"] is None else y + tensors["residual"]
        activation = options.get("activation", "identity")
        return (activate(y, activation, options.get("negative_slope", 0.01), tensors["slopes"]),)

    def errors() -> list[ErrorInput]:
        x, weight = torch.randn(2, 4, 6, 6), torch.randn(6, 4, 3, 3)

        def case(
            label: str, message: str, torch_call: Callable[[], Any], *arguments: Any, **options: Any
        ) -> ErrorInput:
            return ErrorInput(label, lambda impl: function(*arguments, **options, impl=impl), torch_call, message)

        def conv(*arguments: Any) -> Callable[[], Tensor]:
            return lambda: TF.conv2d(*arguments)

        def missing() -> None:
            raise ValueError

        return [
            case("channels", "input must have", conv(x[:, :3], weight), x[:, :3], weight),
            case("dtype", "weight must have input's dtype", conv(x, weight.double()), x, weight.double()),
            case("bias", r"bias must have shape \(6,\)", conv(x, weight, x[0, 0, 0, :5]), x, weight, x[0, 0, 0, :5]),
            case("rank", r"input must have shape \[N, C, H, W\]", conv(x[0, 0], weight), x[0], weight),
            case("even", r"k odd, got \(6, 4, 2, 2\)", conv(x[:, :3], weight), x, weight[:, :, 1:, 1:]),
            case("oblong", r"k odd, got \(6, 4, 1, 3\)", conv(x[:, :3], weight), x, weight[:, :, 1:2]),
            case("not_a_tensor", "input must be a Tensor, got list", conv([1.0], weight), [1.0], weight),
            case("weight_is_none", "weight must be a Tensor, got NoneType", conv(x, None), x, None),
            case("residual", "residual must have shape", lambda: x + x[:, :, :5], x, weight, residual=x[:1]),
            case("activation", "activation must be one of", missing, x, weight, activation="gelu"),
        ]

    return OpSpec(
        function=function,
        samples=samples,
        shapes=shapes(),
        composite=composite,
        differentiable=("input", "weight", "bias", "scale", "residual", "slopes"),
        layout=("input", "residual"),
        outputs_like=(),
        errors=errors,
        interpreted=False,  # its kernels are those of the convolutions
        autocast=True,
        same_bits_at_any_thread_count=False,  # the bias gradient is PyTorch's sum
    )
