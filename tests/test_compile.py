"""``torch.compile(fullgraph=True)``: one graph, eager's results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import gencore
from tests.opspec import OpSpec, Sample, Target, call, cotangents, leaves, prepare, same_layout

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated.*")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    # Compiled code then draws seeds from the same generator as eager code.
    with torch._inductor.config.patch(fallback_random=True):
        yield


def _run(
    spec: OpSpec, target: Target, sample: Sample, layout: str, backend: str
) -> tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]:
    """Outputs, gradients and buffers; eager where ``backend`` is empty. Random ops use the default generator."""
    tensors = prepare(spec, sample, torch.float32, target.device, layout)
    calls = 0

    def function(values: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += not torch.compiler.is_compiling()
        # A neighbour for the compiler to fuse, were the op not opaque.
        return tuple(out * 2 for out in call(spec, values, sample.options, None, target.impl))

    run = torch.compile(function, fullgraph=True, backend=backend) if backend else function
    torch.manual_seed(5)
    outputs = run(tensors)
    assert calls == (0 if backend else 1), "the Python function ran instead of the compiled one"
    inputs = list(leaves(spec, tensors).values())
    grads = torch.autograd.grad(outputs, inputs, cotangents(outputs), allow_unused=True, materialize_grads=True)
    return outputs, list(grads), [x for n in spec.buffers if (x := tensors[n]) is not None]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_compiled_is_eager(spec: OpSpec, target: Target, layout: str) -> None:
    samples = [s for s in spec.samples() if not s.name.startswith("empty")]
    # The reference is PyTorch's own code, so that one sample shows that it traces.
    first, last = (0, 1) if target.impl == "reference" else (0, 3) if layout == "contiguous" else (3, 5)
    for i, sample in enumerate(samples[first:last]):
        # Tracing, fakes, autograd and the mutation of buffers are the same before every backend. Inductor, which calls
        # a C++ compiler, is asked once for each op: with the layout that it could mistake for another.
        inductor = i == 0 and layout == "channels_last" and target.impl != "reference"
        eager = _run(spec, target, sample, layout, backend="")
        compiled = _run(spec, target, sample, layout, backend="inductor" if inductor else "aot_eager")
        for what, a, b in zip(("outputs", "gradients", "buffers"), compiled, eager, strict=True):
            for x, y in zip(a, b, strict=True):
                # Gradients may be long sums of PyTorch's own, which compiled code takes in another order.
                near = 1e-4 if what == "gradients" else 5e-6
                torch.testing.assert_close(
                    x, y, rtol=near, atol=near, msg=lambda m, w=what, s=sample: f"{s.name} {w}: {m}"
                )
                # A gradient that is passed through has the layout in which it came, which compiling changes.
                if what == "outputs" and target.impl != "reference":
                    assert same_layout(x, y), f"{sample.name}: output in another layout"


def test_compiles_once_for_many_batch_sizes(spec: OpSpec, target: Target) -> None:
    """One graph with a symbolic batch size, right for sizes that it was not traced with."""
    sample = spec.samples()[0]
    master = prepare(spec, sample, torch.float32, target.device)
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        nonlocal graphs
        graphs += 1
        return graph.forward

    def function(values: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        return call(spec, values, sample.options, None, target.impl)

    compiled = torch.compile(function, fullgraph=True, backend=count, dynamic=True)
    # A batch as large as the image is high would be taken for its height.
    sizes = {size for x in master.values() if x is not None for size in x.shape}
    batches = [len(x) for name in (*spec.layout, *sample.batch) if (x := master[name]) is not None]
    for copies in [n for n in range(2, 9) if not {n * batch for batch in batches} & sizes][:3]:
        tensors = {n: x.detach() if x is not None else None for n, x in master.items()}
        for name in (*spec.layout, *sample.batch):
            if (x := tensors[name]) is not None:
                tensors[name] = torch.cat([x] * copies)
        eager_tensors = {n: x.clone() if x is not None else None for n, x in tensors.items()}
        torch.manual_seed(5)
        outputs = compiled(tensors)
        torch.manual_seed(5)
        for x, y in zip(outputs, function(eager_tensors), strict=True):
            torch.testing.assert_close(x, y)
    assert graphs == 1, f"compiled {graphs} graphs for three batch sizes"


def test_backend_is_read_inside_a_compiled_region(spec: OpSpec, target: Target) -> None:
    """The context manager traces, and the graph holds the implementation that it names."""
    sample = spec.samples()[0]
    tensors = {
        n: x.detach() if x is not None else None for n, x in prepare(spec, sample, torch.float32, target.device).items()
    }
    names: list[str] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        names.extend(str(n.args[-1]) for n in graph.graph.nodes if str(n.target).startswith("gencore."))
        return graph.forward

    @torch.compile(fullgraph=True, backend=record)
    def function(values: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        with gencore.backend(target.impl):
            return call(spec, values, sample.options, None, "auto")

    function(tensors)
    assert set(names) == (set() if target.impl == "reference" else {target.impl})
