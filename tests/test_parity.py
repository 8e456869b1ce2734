"""Every op gives PyTorch's values and gradients, in each dtype, layout and shape, and leaves its inputs alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.accuracy import Comparison, assert_accurate
from tests.opspec import (
    LAYOUTS,
    OpSpec,
    Sample,
    Target,
    as_float64,
    call,
    cotangents,
    leaves,
    prepare,
    same_layout,
    some_samples,
)


def check(spec: OpSpec, target: Target, dtype: torch.dtype, sample: Sample, layout: str = "contiguous") -> None:
    """Outputs, modified buffers and gradients under the accuracy rule; shapes, dtypes, strides; inputs unchanged."""
    assert_accurate(
        _compare(spec, target, dtype, sample, layout),
        lambda: (_compare(spec, target, dtype, s, layout) for s in _neighbours(spec, sample)),
    )


def _compare(spec: OpSpec, target: Target, dtype: torch.dtype, sample: Sample, layout: str) -> list[Comparison]:
    ours = prepare(spec, sample, dtype, target.device, layout)
    theirs = prepare(spec, sample, dtype, target.device, layout)
    exact = as_float64(ours)
    untouched = {n: (x.detach().clone(), x._version) for n, x in ours.items() if x is not None}
    compared = []

    outputs = call(spec, ours, sample.options, sample.seed, target.impl)
    torch_outputs = spec.composite(theirs, sample.options, sample.seed)
    oracle_outputs = call(spec, exact, sample.options, sample.seed, "reference")

    for i, (a, b, c) in enumerate(zip(outputs, torch_outputs, oracle_outputs, strict=True)):
        assert a.dtype == b.dtype, f"output {i} is {a.dtype}, PyTorch gives {b.dtype}"
        compared.append(Comparison(f"output {i}", a, b, c, f"output {i}" in spec.noisy))
    like = ours[spec.layout[0]]
    assert like is not None
    for i in spec.outputs_like if target.impl != "reference" else ():  # plain PyTorch chooses its own
        assert same_layout(outputs[i], torch.empty_like(like)), f"output {i} left the input's layout"
    for name in spec.buffers:
        if (a := ours[name]) is not None:
            compared.append(Comparison(name, a, theirs[name], exact[name]))  # type: ignore[arg-type]

    grads = _gradients(spec, ours, outputs)
    torch_grads = _gradients(spec, theirs, torch_outputs)
    oracle_grads = _gradients(spec, exact, oracle_outputs, given=cotangents(outputs))
    for name, grad in grads.items():
        x = ours[name]
        assert x is not None
        assert grad.dtype == x.dtype, f"gradient of {name} is {grad.dtype}"
        label = f"gradient of {name}"
        compared.append(Comparison(label, grad, torch_grads[name], oracle_grads[name], label in spec.noisy))

    for name, (before, version) in untouched.items():
        if name not in spec.buffers:
            after = ours[name]
            assert after is not None
            assert after._version == version, f"{name} was written to"
            torch.testing.assert_close(after.detach(), before, rtol=0, atol=0, equal_nan=True)
    return compared


def _neighbours(spec: OpSpec, sample: Sample, count: int = 15) -> Iterator[Sample]:
    """The sample with every floating-point number moved by about 1%: zeros, and all that matters, stay."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        tensors = {
            n: x * (1 + 0.01 * torch.randn(x.shape, generator=generator, dtype=x.dtype))
            if x is not None and x.dtype.is_floating_point
            else x
            for n, x in sample.tensors.items()
        }
        yield replace(sample, tensors=tensors)


def _gradients(
    spec: OpSpec,
    tensors: dict[str, Tensor | None],
    outputs: tuple[Tensor, ...],
    given: list[Tensor] | None = None,
) -> dict[str, Tensor]:
    inputs = leaves(spec, tensors)
    vectors = given or cotangents(outputs)
    vectors = [v.to(out.device, out.dtype) for v, out in zip(vectors, outputs, strict=True)]
    grads = torch.autograd.grad(outputs, list(inputs.values()), vectors, allow_unused=True, materialize_grads=True)
    return dict(zip(inputs, grads, strict=True))


def test_values_and_gradients(spec: OpSpec, target: Target, dtype: torch.dtype, sample: Sample) -> None:
    check(spec, target, dtype, sample)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
def test_layouts(spec: OpSpec, target: Target, dtype: torch.dtype, layout: str) -> None:
    # The reference is PyTorch's own code: what can go wrong there, such as a view that the strides do not allow, goes
    # wrong in any dtype.
    some = target.impl == "reference" and dtype != torch.float32
    for sample in some_samples(spec, target)[: 2 if some else None]:
        check(spec, target, dtype, sample, layout)


@pytest.mark.kernels_only
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded"])
def test_cotangents_in_any_layout(spec: OpSpec, target: Target, layout: str) -> None:
    """Gradients arrive expanded from ``sum()``, or in another layout than the input's."""
    for sample in some_samples(spec, target):
        tensors = prepare(spec, sample, torch.float32, target.device)
        outputs = call(spec, tensors, sample.options, sample.seed, target.impl)
        inputs = list(leaves(spec, tensors).values())
        vectors = [LAYOUTS[layout](v) if v.dim() > 1 else v for v in cotangents(outputs)]
        for one in range(len(outputs)):  # each output alone as well: the other's gradient is then undefined
            got = torch.autograd.grad(outputs[one], inputs, vectors[one], retain_graph=True, allow_unused=True)
            dense = vectors[one].contiguous()
            wanted = torch.autograd.grad(outputs[one], inputs, dense, retain_graph=True, allow_unused=True)
            for a, b in zip(got, wanted, strict=True):
                # Sums go in another order in another layout: what cancels in one place keeps the rounding of the whole.
                scale = 1.0 if b is None or b.numel() == 0 else max(1.0, b.abs().nan_to_num().max().item())
                torch.testing.assert_close(a, b, rtol=4e-6, atol=4e-6 * scale, equal_nan=True)


@pytest.mark.second_order
def test_second_derivatives(spec: OpSpec, target: Target) -> None:
    """The gradient of the gradient's squared norm, as in a gradient penalty, against the float64 oracle."""
    for sample in [s for s in some_samples(spec, target) if s.smooth]:
        assert_accurate(
            _compare_second(spec, target, sample),
            lambda sample=sample: (_compare_second(spec, target, s) for s in _neighbours(spec, sample)),  # type: ignore[misc]
        )


def _compare_second(spec: OpSpec, target: Target, sample: Sample) -> list[Comparison]:
    ours = prepare(spec, sample, torch.float32, target.device)
    theirs = prepare(spec, sample, torch.float32, target.device)
    exact = as_float64(ours)
    results = []
    for tensors, outputs in (
        (ours, call(spec, ours, sample.options, sample.seed, target.impl)),
        (theirs, spec.composite(theirs, sample.options, sample.seed)),
        (exact, call(spec, exact, sample.options, sample.seed, "reference")),
    ):
        inputs = list(leaves(spec, tensors).values())
        # The gradient's own gradient is asked for too: in a linear op, nothing else depends on anything.
        vectors = [v.to(out.dtype).requires_grad_() for v, out in zip(cotangents(outputs), outputs, strict=True)]
        grads = torch.autograd.grad(outputs, inputs, vectors, create_graph=True, allow_unused=True)
        penalty = sum(g.double().square().sum().to(g.dtype) for g in grads if g is not None)
        wanted = [*inputs, *vectors]
        results.append(torch.autograd.grad(penalty, wanted, allow_unused=True, materialize_grads=True))
    names = [*leaves(spec, ours), *(f"the gradient of output {i}" for i in range(len(vectors)))]
    # Two rounds of formulas, each rounded in its own order, lie between the input and this.
    return [
        Comparison(f"{sample.name}: second derivative of {name}", a, b, c, slack=2)
        for name, a, b, c in zip(names, *results, strict=True)
    ]


def test_drawn_shapes(spec: OpSpec, target: Target) -> None:
    examples = 6 if target.interpreted else 40

    @settings(max_examples=examples)
    @given(sample=spec.shapes, dtype=st.sampled_from(target.dtypes), layout=st.sampled_from(sorted(LAYOUTS)))
    def run(sample: Sample, dtype: torch.dtype, layout: str) -> None:
        check(spec, target, dtype, sample, layout)

    run()
