"""What a test needs to know about an op. One ``OpSpec`` in ``tests/specs/<op>.py`` drives every generic test.

To add an op: write ``tests/specs/<op>.py`` with one ``SPEC = OpSpec(...)``. Nothing else has to be edited; parity,
gradients, opcheck, compilation, layouts, determinism, bad input and the GPU variants of all of them follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Sample:
    """One call of an op.

    Attributes:
        name: what is special about it; part of the test's id.
        tensors: tensor arguments by name, float64, on the CPU, contiguous; None where an optional one is left out.
        options: the other arguments.
        seed: for random ops, the seed of the ``generator`` that is passed; None for the others.
        batch: names of tensors outside of ``layout`` that grow with its first dimension.
        smooth: False for values so extreme that finite differences and second derivatives overflow.
    """

    name: str
    tensors: Mapping[str, Tensor | None]
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    smooth: bool = True
    batch: tuple[str, ...] = ()


@dataclass(frozen=True)
class ErrorInput:
    """A call that must be refused, and what PyTorch says to the same mistake.

    Attributes:
        name: the mistake.
        call: makes it, through the public function, with the ``impl`` that it is given.
        torch_call: makes the same mistake with PyTorch's own functions; the exception types must agree.
        message: a regular expression that our message must match: the argument, what was wanted, what came.
    """

    name: str
    call: Callable[[str], Any]
    torch_call: Callable[[], Any]
    message: str


@dataclass(frozen=True)
class OpSpec:
    """Everything that the generic tests know about one op.

    Attributes:
        function: the public function of ``gencore.functional``.
        samples: representative calls, with small tensors; edge cases (empty, one element, one channel) are among them.
        shapes: a hypothesis strategy that draws more samples.
        composite: the same in PyTorch's own functions, in the dtype of its arguments: ``(tensors, options, seed)`` to
            the tuple of results. Buffers are mutated as the op mutates them.
        differentiable: names of the tensors that have gradients.
        layout: names of the tensors that take every memory layout; the first one gives the layout of ``outputs_like``.
        outputs_like: indices of the results that must come in the layout of the first of ``layout``.
        buffers: names of the tensors that the op modifies, as documented.
        keep_float32: names of the tensors that stay float32 where the others are bfloat16 or float16.
        noisy: names of the results (``output 0``, ``gradient of x``) that hold random numbers. These are float32 in
            every dtype, so that float64 results are compared at float32's floor.
        errors: bad calls.
        large: builds, runs and checks a call over 2^31 elements (``large(device, impl)``); None where it cannot happen.
        large_bytes: the memory that ``large`` needs.
        gradgradcheck: whether second derivatives are offered.
        raw_ops: how many registered ops a call and its gradient go through; 1 where an op's gradient is the op itself.
        interpreted: whether Triton's interpreter runs the generic tests; False where another spec has the same kernel.
        autocast: whether ``torch.autocast`` runs the op in the lower dtype, as PyTorch's own; else it changes nothing.
        same_bits_at_any_thread_count: whether the CPU result is promised to be independent of the thread count.
    """

    function: Callable[..., Any]
    samples: Callable[[], list[Sample]]
    shapes: st.SearchStrategy[Sample]
    composite: Callable[[Mapping[str, Tensor | None], Mapping[str, Any], int | None], tuple[Tensor, ...]]
    differentiable: tuple[str, ...]
    layout: tuple[str, ...]
    outputs_like: tuple[int, ...] = (0,)
    buffers: tuple[str, ...] = ()
    keep_float32: tuple[str, ...] = ()
    noisy: tuple[str, ...] = ()
    errors: Callable[[], list[ErrorInput]] = list
    large: Callable[[str, str], None] | None = None
    large_bytes: int = 0
    gradgradcheck: bool = True
    raw_ops: int = 2
    interpreted: bool = True
    autocast: bool = False
    same_bits_at_any_thread_count: bool = True

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def implementations(self) -> tuple[str, ...]:
        from gencore.dispatch import OPS

        return tuple(OPS[self.name].implementations)


@dataclass(frozen=True)
class Target:
    """Where a test runs: an implementation and a device."""

    impl: str
    device: str

    def __str__(self) -> str:
        return self.impl if self.device == "cpu" else f"{self.impl}_{self.device}"

    @property
    def interpreted(self) -> bool:
        return self.impl == "triton" and self.device == "cpu"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return GPU_DTYPES if self.impl == "triton" or self.device != "cpu" else DTYPES


def some_samples(spec: OpSpec, target: Target) -> list[Sample]:
    """All samples of an op, or the first two where a program is interpreted, which takes a tenth of a second."""
    return spec.samples()[: 2 if target.interpreted else None]


# --- memory layouts --------------------------------------------------------------------------------------------------


def _channels_last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if x.dim() in formats:
        return x.clone(memory_format=formats[x.dim()])
    return x.clone() if x.dim() < 3 else x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def _permuted(x: Tensor) -> Tensor:
    order = list(reversed(range(x.dim())))
    return x.permute(order).clone(memory_format=torch.contiguous_format).permute(order)


def _sliced(x: Tensor) -> Tensor:
    """Every second element of the last dimension of something larger, at an odd storage offset; the gaps hold NaN."""
    shape = list(x.shape)
    shape[-1] = 2 * shape[-1] + 1
    base = torch.full(shape, float("nan"), dtype=x.dtype, device=x.device)
    view = base[..., 1::2]
    view.copy_(x)
    return view


def _expanded(x: Tensor) -> Tensor:
    """Stride 0 along the first dimension; the values of the first row count."""
    return x[:1].clone().expand_as(x) if x.shape[0] > 1 else x.clone()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(memory_format=torch.contiguous_format),
    "channels_last": _channels_last,
    "permuted": _permuted,
    "sliced": _sliced,
    "expanded": _expanded,
}


# --- calls -----------------------------------------------------------------------------------------------------------


def prepare(
    spec: OpSpec, sample: Sample, dtype: torch.dtype, device: str = "cpu", layout: str = "contiguous"
) -> dict[str, Tensor | None]:
    """The sample's tensors in a dtype and layout; gradients are asked for where they exist."""
    tensors: dict[str, Tensor | None] = {}
    for name, master in sample.tensors.items():
        if master is None:
            tensors[name] = None
            continue
        x = master.detach()
        if x.dtype.is_floating_point:
            x = x.to(torch.float32 if name in spec.keep_float32 and dtype in HALF else dtype)
        x = LAYOUTS[layout](x.to(device)) if name in spec.layout else x.to(device, copy=True)
        tensors[name] = x.requires_grad_() if name in spec.differentiable else x
    return tensors


def as_float64(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The oracle's inputs: the very values of ``tensors``, as contiguous float64 on the CPU."""
    result: dict[str, Tensor | None] = {}
    for name, x in tensors.items():
        if x is not None:
            y = x.detach().to("cpu", copy=True).contiguous()
            y = y.double() if y.dtype.is_floating_point else y
            result[name] = y.requires_grad_(x.requires_grad)
        else:
            result[name] = None
    return result


def call(
    spec: OpSpec, tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None, impl: str
) -> tuple[Tensor, ...]:
    """Run the public function; the results as a tuple."""
    keywords: dict[str, Any] = {**tensors, **options, "impl": impl}
    if seed is not None:
        device = next(x.device for x in tensors.values() if x is not None)
        keywords["generator"] = torch.Generator(device).manual_seed(seed)
    result = spec.function(**keywords)
    return (result,) if isinstance(result, Tensor) else tuple(result)


def same_layout(x: Tensor, y: Tensor) -> bool:
    """Equal strides, but for dimensions of one element, whose stride means nothing."""
    if x.shape != y.shape or x.numel() == 0:
        return x.shape == y.shape
    return all(n == 1 or a == b for n, a, b in zip(x.shape, x.stride(), y.stride(), strict=True))


def leaves(spec: OpSpec, tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The tensors that gradients are taken of, by name."""
    return {n: x for n in spec.differentiable if (x := tensors[n]) is not None}


def cotangents(outputs: tuple[Tensor, ...], seed: int = 1) -> list[Tensor]:
    """Random gradients for the outputs, the same values whatever the dtype."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(out.shape, generator=generator, dtype=torch.float64) for out in outputs]
    # Rounded to bfloat16, which every dtype but float16 holds exactly; float16 has more digits and enough range.
    return [g.bfloat16().to(out.device, out.dtype) for g, out in zip(drawn, outputs, strict=True)]
