"""Samples, PyTorch's own version and bad input of the convolution family: one builder for the six."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from gencore.reference.activation import activate
from tests.opspec import ErrorInput, OpSpec, Sample

GEOMETRY = ("stride", "padding", "output_padding", "dilation", "groups")


def convolution_spec(function: Callable[..., Tensor]) -> OpSpec:
    """The ``OpSpec`` of ``conv1d`` to ``conv_transpose3d``."""
    name = function.__name__
    dims, transposed = int(name[-2]), "transpose" in name
    torchs = getattr(torch.nn.functional, name)
    # Few pixels and channels in three dimensions: finite differences visit every number.
    small = {1: 5, 2: 3, 3: 2}[dims]

    def sample(
        label: str,
        n: int,
        inner: int,
        outer: int,
        size: int,
        kernel: int,
        *,
        bias: bool = True,
        residual: bool = False,
        scale: str = "",
        seed: int = 5,
        **options: Any,
    ) -> Sample:
        """``inner`` and ``outer`` are channels of a group; odd dimensions are one longer than ``size``; ``scale`` says
        what each of its numbers is of: ``"sample"``, ``"channel"`` or ``"all"``."""
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *s: torch.randn(s, dtype=torch.float64, generator=generator)  # noqa: E731
        groups = options.get("groups", 1)
        first, second = (inner * groups, outer) if transposed else (outer * groups, inner)
        x = draw(n, inner * groups, *(size + d % 2 for d in range(dims)))
        weight = draw(first, second, *[kernel] * dims) / (inner * kernel**dims) ** 0.5
        geometry = {key: options[key] for key in GEOMETRY if key in options}
        shape = torchs(x.to("meta"), weight.to("meta"), **geometry).shape
        scales = {"sample": (n, outer * groups), "channel": (outer * groups,), "all": (1,)}
        tensors = {
            "input": x,
            "weight": weight,
            "bias": draw(outer * groups) if bias else None,
            "scale": 1 + 0.5 * draw(*scales[scale]) if scale else None,
            "residual": draw(*shape) if residual else None,
            "slopes": draw(outer * groups).sigmoid() if options.get("activation") == "prelu" else None,
        }
        return Sample(label, tensors, options, batch=("scale",) if scale == "sample" else ())

    def samples() -> list[Sample]:
        strided: dict[str, Any] = {"stride": 2, "padding": 1}
        if transposed:
            strided["output_padding"] = 1
        return [
            sample("leaky_relu", 2, 5, 9, 7, 3, padding=1, activation="leaky_relu", negative_slope=0.2),
            sample("strided", 2, 3, 6, 5, 4, bias=False, **strided),
            sample("residual", 2, 4, 3, 4, 2, residual=True, activation="relu"),
            sample("scaled", 2, 3, 5, 4, 3, scale="sample", padding=1, activation="tanh"),
            sample(
                "scaled_channels", 2, 6, 17, 5, 3, scale="channel", residual=True, activation="leaky_relu", **strided
            ),
            sample("grouped", 2, 2, 3, 5, 2, groups=2, dilation=2, padding=1),
            sample("depthwise", 2, 1, 1, 4, 3, groups=3, padding=1, activation="prelu"),
            sample("few", 2, 40, 3, 3, 3, **strided),
            sample("wide", 2, 20, 70, 2, 2, activation="silu"),
            sample("tiny", 1, 2, 2, small, 2, stride=2, activation="sigmoid", scale="sample"),
            sample("tiny_relu", 1, 2, 2, small, 2, activation="relu", residual=True, bias=False, scale="all"),
            sample("tiny_grouped", 2, 1, 2, small, 2, groups=2, scale="channel", activation="tanh"),
            sample("scaled_silu", 3, 30, 20, 3, 2, scale="all", activation="silu"),
            sample("one_pixel", 3, 7, 5, 1, 2 if transposed else 1),
            sample("one_channel", 1, 1, 1, 4, 3),
            sample("empty_batch", 0, 3, 2, 4, 3),
        ]

    @st.composite
    def shapes(draw: st.DrawFn) -> Sample:
        kernel, stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
        # Enough pixels for the kernel, and few enough that padding leaves something of a transposed convolution.
        size, padding = draw(st.integers(dilation * (kernel - 1) + 1, 6)), draw(st.integers(0, kernel // 2))
        options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        if transposed:
            options["output_padding"] = draw(st.integers(0, max(stride, dilation) - 1))
        flag = st.booleans()
        return sample(
            "drawn",
            draw(st.integers(1, 4)),
            draw(st.integers(1, 5)),
            draw(st.integers(1, 20)),
            size,
            kernel,
            groups=draw(st.sampled_from([1, 1, 2])),
            bias=draw(flag),
            residual=draw(flag),
            scale=draw(st.sampled_from(["", "sample", "channel", "all"])),
            seed=draw(st.integers(0, 99)),
            activation=draw(st.sampled_from(["identity", "tanh", "silu", "sigmoid"])),
            **options,
        )

    def composite(tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None) -> tuple[Tensor]:
        weight, bias, scale, residual = (tensors[name] for name in ("weight", "bias", "scale", "residual"))
        assert weight is not None
        ones = [1] * dims
        late = scale is not None and scale.dim() == 2 and bias is not None
        if scale is not None and scale.dim() < 2:  # goes into the weight, as in spectral normalisation
            groups = options.get("groups", 1)
            channels = weight.shape[1] * groups if transposed else len(weight)
            factor = scale.expand(channels).view(groups, -1)
            factor = factor.repeat_interleave(len(weight) // groups, 0) if transposed else factor.reshape(-1, 1)
            weight = weight * factor.view(*factor.shape, *ones)
        geometry = {key: options[key] for key in GEOMETRY if key in options}
        y = torchs(tensors["input"], weight, None if late else bias, **geometry)
        if scale is not None and scale.dim() == 2:
            y = y * scale.view(*scale.shape, *ones)
        if late and bias is not None:
            y = y + bias.view(-1, *ones)
        y = y if residual is None else y + residual
        activation = options.get("activation", "identity")
        return (activate(y, activation, options.get("negative_slope", 0.01), tensors["slopes"]),)

    def errors() -> list[ErrorInput]:
        ones = [1] * dims
        x = torch.randn(2, 4, *[5] * dims)
        weight = torch.randn(*((4, 6) if transposed else (6, 4)), *[3] * dims)

        def case(label: str, message: str, *arguments: Any, **options: Any) -> ErrorInput:
            return ErrorInput(
                label,
                lambda impl: function(*arguments, **options, impl=impl),
                lambda: torchs(*arguments, **options),
                message,
            )

        sizes = (
            [case("output_padding", r"output_padding must be smaller", x, weight, output_padding=1)]
            if transposed
            else [case("kernel", r"must not be smaller than the kernel", x[..., :2], weight)]
        )
        return [
            case("channels", r"input must have 4 channels .* got 3", x[:, :3], weight),
            case("dtype", r"weight must have input's dtype torch.float32, got torch.float64", x, weight.double()),
            case("integers", r"weight must have input's dtype torch.int64, got torch.float32", x.long(), weight),
            case("bias", r"bias must have shape \(6,\), got \(5,\)", x, weight, torch.ones(5)),
            case("dimensions", rf"input must have {dims + 2} dimensions", x.reshape(*x.shape, *ones, 1), weight),
            case("stride", r"stride must be at least 1, got 0", x, weight, stride=0),
            case("padding", r"padding must be at least 0, got -1", x, weight, padding=-1),
            case("groups", r"divisible by groups", x, weight, groups=5),
            case("not_a_tensor", r"input must be a Tensor, got list", [1.0], weight),
            *sizes,
        ]

    def large(device: str, impl: str) -> None:
        """Images of 2^31 elements and some, zero but for the far corner: the input or the result, and its gradient.
        Taps do not overlap, so that the corner can be computed by itself."""
        few = int(2 ** (26 / dims) / 4) + 1
        wide, narrow = (2, 16, *[4 * few + 3] * dims), (2, 3, *[few + 1] * dims)
        corner = lambda t: t[(..., *[slice(-39 if t.shape[1] == 16 else -10, None)] * dims)]  # noqa: E731
        weight = torch.randn(3, 16, *[3] * dims, device=device).bfloat16().requires_grad_()
        images = []
        for shape in (narrow, wide) if transposed else (wide, narrow):
            image = torch.zeros(*shape, dtype=torch.bfloat16, device=device)
            if transposed:  # the one family in channels_last, the other contiguous
                image = image.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
            corner(image).copy_(torch.randn(corner(image).shape))
            images.append(image)
        x, grad = images
        assert max(x.numel(), grad.numel()) > 2**31
        y = function(x.requires_grad_(), weight, stride=4, impl=impl)
        assert y.count_nonzero() == corner(y).count_nonzero()
        found = (corner(y), *torch.autograd.grad(y, (x, weight), grad))
        near = [corner(x).float().detach().requires_grad_(), weight.float().detach().requires_grad_()]
        exact = torchs(*near, stride=4)
        wanted = (exact, *torch.autograd.grad(exact, near, corner(grad).float()))
        for ours, right in zip((found[0], corner(found[1]), found[2]), wanted, strict=True):
            torch.testing.assert_close(ours.float(), right, rtol=1e-2, atol=1e-1)

    return OpSpec(
        function=function,
        samples=samples,
        shapes=shapes(),
        composite=composite,
        differentiable=("input", "weight", "bias", "scale", "residual", "slopes"),
        layout=("input", "residual"),
        outputs_like=(),
        errors=errors,
        large=large if dims == 2 else None,  # one engine, minutes
        large_bytes=15 << 30,
        interpreted=dims == 2,
        autocast=True,
        same_bits_at_any_thread_count=False,  # the bias gradient is PyTorch's sum
    )
