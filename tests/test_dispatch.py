"""Which implementation runs: per call, per block, per process; why; and that an explicit choice never falls back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import gencore
from gencore import functional as F
from gencore.dispatch import OPS
from tests.processes import run_python

needs_extension = pytest.mark.skipif(not gencore.dispatch.EXTENSION.loaded, reason="the C++ extension was not built")


class _Ran(TorchDispatchMode):
    """The implementations whose kernels were really called, read off the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "gencore":
            self.names.append(args[-1])
        return func(*args, **(kwargs or {}))


def _ran(call: Callable[[], Any]) -> str:
    with _Ran() as ran:
        call()
    return ran.names[0] if ran.names else "reference"


X = torch.linspace(-2, 2, 32).view(4, 8)


@needs_extension
def test_auto_takes_the_cpu_kernels() -> None:
    assert _ran(lambda: F.reparameterize_kl(X, X)) == "cpu"


@needs_extension
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_impl_and_backend_run_what_they_name(impl: str) -> None:
    assert _ran(lambda: F.reparameterize_kl(X, X, impl=impl)) == impl
    with gencore.backend(impl):
        assert _ran(lambda: F.reparameterize_kl(X, X)) == impl


@needs_extension
def test_the_argument_wins_over_the_block_and_blocks_nest() -> None:
    with gencore.backend("reference"):
        assert _ran(lambda: F.reparameterize_kl(X, X, impl="cpu")) == "cpu"
        with gencore.backend("cpu"):
            assert _ran(lambda: F.reparameterize_kl(X, X)) == "cpu"
        assert _ran(lambda: F.reparameterize_kl(X, X)) == "reference"
        with gencore.backend("auto"):
            assert _ran(lambda: F.reparameterize_kl(X, X)) == "cpu"


def test_the_block_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), gencore.backend("reference"):
        raise KeyError
    assert gencore.explain("reparameterize_kl", X, X).requested == "auto"


@needs_extension
def test_the_block_holds_in_its_own_thread_only() -> None:
    seen: list[str] = []
    with gencore.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(_ran(lambda: F.reparameterize_kl(X, X))))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_an_explicit_choice_never_falls_back() -> None:
    with pytest.raises(
        gencore.UnsupportedImplementation, match=r"impl='triton' cannot run here: the tensors are on cpu"
    ):
        F.reparameterize_kl(X, X, impl="triton")
    with gencore.backend("triton"), pytest.raises(gencore.UnsupportedImplementation, match="TRITON_INTERPRET"):
        F.reparameterize_kl(X, X)
    with pytest.raises(gencore.UnsupportedImplementation, match="no such implementation"):
        F.reparameterize_kl(X, X, impl="cuda")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reparameterize_kl: impl must be one of auto, .*; got 'fast'"):
        F.reparameterize_kl(X, X, impl="fast")
    with pytest.raises(ValueError, match=r"backend: impl must be one of"), gencore.backend("fast"):
        pass
    with pytest.raises(ValueError, match="there is no op 'sparkle'"):
        gencore.explain("sparkle", X)


def test_explain_names_every_implementation_and_the_reason() -> None:
    answer = gencore.explain(F.reparameterize_kl, X, X)
    assert [row[0] for row in answer.rows] == list(OPS["reparameterize_kl"].implementations)
    assert answer.chosen == _ran(lambda: F.reparameterize_kl(X, X))
    refused = {name: why for name, accepted, why in answer.rows if not accepted}
    assert "GPU" in refused["triton"]
    assert str(answer).splitlines()[0] == f"reparameterize_kl: impl='auto' runs {answer.chosen!r}"
    assert gencore.explain("reparameterize_kl", X, X, impl="triton").chosen is None


def test_explain_knows_the_calls_of_another_op() -> None:
    x, f = torch.zeros(1, 1, 4, 4), F.setup_filter([1, 3, 3, 1])
    for function in (F.upsample2d, F.downsample2d, F.filter2d):
        assert gencore.explain(function, x, f).chosen == gencore.explain(F.upfirdn2d, x, f).chosen


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_the_environment_variable_sets_the_default(impl: str) -> None:
    code = "import torch, gencore; x = torch.zeros(2, 2); print(gencore.explain('reparameterize_kl', x, x).chosen)"
    result = run_python("-c", code, GENCORE_BACKEND=impl)
    assert result.stdout.strip() == impl, result.stderr


def test_a_bad_environment_variable_is_refused_at_import() -> None:
    result = run_python("-c", "import gencore", GENCORE_BACKEND="fast")
    assert result.returncode != 0
    assert "environment variable GENCORE_BACKEND: impl must be one of" in result.stderr


@needs_extension
def test_compiled_code_follows_the_block_around_it() -> None:
    graphs: list[str] = []

    def record(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        used = [str(n.args[-1]) for n in graph.graph.nodes if str(n.target).startswith("gencore.")]
        graphs.append(used[0] if used else "reference")
        return graph.forward

    torch._dynamo.reset()
    function = torch.compile(lambda x: F.reparameterize_kl(x, x)[1], fullgraph=True, backend=record)
    for impl in ("cpu", "reference", "cpu"):
        with gencore.backend(impl):
            function(X)
    function(X)
    assert graphs[:2] == ["cpu", "reference"], "the second block must compile anew, the third must reuse"
    assert len(graphs) <= 3


@needs_extension
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_auto_gives_a_tracer_pytorchs_ops() -> None:
    model = torch.nn.Sequential(
        gencore.nn.ConvNormAct(gencore.nn.Conv2d(64, 64, 3), gencore.nn.BatchNorm2d(64, activation="relu")),
        gencore.nn.ConvTranspose2d(64, 3, 4),
    ).eval()
    x = torch.randn(8, 64, 32, 32)
    with torch.no_grad():
        assert gencore.explain("conv2d", x, model[0][0].weight).chosen == "cpu"
        traced = torch.jit.trace(model, x)
        torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-4)
    assert "gencore::" not in str(traced.inlined_graph)


@needs_extension
def test_auto_says_that_forward_mode_is_pytorchs() -> None:
    with forward_ad.dual_level():
        answer = gencore.explain("reparameterize_kl", X, X)
        assert answer.chosen == "reference"
        assert "forward-mode" in {name: why for name, _, why in answer.rows}["cpu"]
        assert gencore.explain("reparameterize_kl", X, X, impl="cpu").chosen == "cpu"
    assert gencore.explain("reparameterize_kl", X, X).chosen == "cpu"
