"""Options, parametrisation of the generic tests, and what the summary must not hide.

A generic test asks for ``spec`` and ``target`` (and, if it likes, ``dtype`` and ``sample``) and runs for every op,
every implementation and every device:

* on the CPU: ``reference`` and ``cpu``;
* under ``TRITON_INTERPRET=1``, in a process of its own: ``triton`` on CPU tensors, and nothing else;
* on a GPU: ``triton`` and ``reference``, marked ``gpu``. Without one these are skipped, counted and named at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The same examples in every run; how many of them is up to the test.
hypothesis.settings.register_profile(
    "reproducible",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("reproducible")
# The workers of pytest-xdist share the cores: with a pool of threads each, they would wait for one another at every op.
# What hangs on the number of threads is tested at several numbers of them.
torch.set_num_threads(1)
if INTERPRETED:
    from tests.interpreter import instrument

    instrument.repair_bfloat16()
    instrument.skip_unread_checks()
    collect_ignore = ["offline"]
else:
    collect_ignore = ["interpreter"]


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    """Each test draws from generators that no other test has drawn from: workers take the tests in no fixed order.

    One seed for all, so that a test's numbers hang on the test alone: not on its name, its parameters or its folder,
    and two implementations under one test see the same tensors. (``random`` and NumPy's generator are used nowhere;
    hypothesis seeds them for its examples.)
    """
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _interpreted_kernels_keep_to_their_memory() -> Iterator[None]:
    if not INTERPRETED:
        yield
        return
    with instrument.checked_memory():
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the tests marked slow (minutes, gigabytes)")
    parser.addoption("--update-budgets", action="store_true", help="write tests/offline/budgets.json anew")
    parser.addoption("--only-impl", help="run the generic tests for this implementation alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "spec" not in metafunc.fixturenames or "target" not in metafunc.fixturenames:
        return
    names = [n for n in ("spec", "target", "dtype", "sample") if n in metafunc.fixturenames]
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    metafunc.parametrize(names, list(_parameters(names, marks, metafunc.config.getoption("--only-impl"))))


def _parameters(names: list[str], test_marks: set[str], only: str | None) -> Iterator[object]:
    from tests.opspec import Target
    from tests.specs import SPECS

    if INTERPRETED:
        targets = [Target("triton", "cpu")]
    else:
        targets = [Target(i, "cpu") for i in ("reference", "cpu")] + [
            Target(i, "cuda") for i in ("reference", "triton")
        ]
    for spec in SPECS:
        samples = spec.samples() if "sample" in names else [None]
        for target in targets:
            if target.impl not in spec.implementations or (only and target.impl != only):
                continue
            if INTERPRETED and not spec.interpreted:
                continue
            if "kernels_only" in test_marks and target.impl == "reference":
                continue
            if "float64_only" in test_marks and torch.float64 not in target.dtypes:
                continue
            if "native_only" in test_marks and (target.impl == "reference" or INTERPRETED):
                continue
            if "second_order" in test_marks and not spec.gradgradcheck:
                continue
            marks = [pytest.mark.gpu] if target.device == "cuda" else []
            for dtype in target.dtypes if "dtype" in names else (None,):
                # An interpreted program takes a tenth of a second: the 16-bit types get a few samples and one layout.
                some = INTERPRETED and dtype is not None and dtype != torch.float32
                if some and "sample" not in names:
                    continue
                for sample in samples[: 3 if some else None]:
                    chosen = {"spec": spec, "target": target, "dtype": dtype, "sample": sample}
                    labels = [
                        spec.name,
                        str(target),
                        str(dtype).removeprefix("torch."),
                        getattr(sample, "name", "None"),
                    ]
                    label = "-".join(text for text in labels if text != "None")
                    yield pytest.param(*(chosen[n] for n in names), id=label, marks=marks)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # What takes minutes starts first, so that no worker is left with it at the end.
    items.sort(key=lambda item: item.path.name not in ("test_triton.py", "test_isa.py", "test_packaging.py"))
    has_gpu = torch.cuda.is_available()
    for item in items:
        if "gpu" in item.keywords and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if "slow" in item.keywords and not config.getoption("--runslow"):
            item.add_marker(pytest.mark.skip(reason="slow; give --runslow"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what did not run, and what ran in other processes."""
    skipped = terminalreporter.stats.get("skipped", [])
    write = terminalreporter.write_line
    terminalreporter.section("what ran where")
    for keyword, text in (
        ("gpu", "need a GPU and did not run: nothing here says that they pass"),
        ("slow", "are slow and did not run (--runslow runs them)"),
    ):
        count = sum(keyword in report.keywords for report in skipped)
        if count:
            write(f"{count} tests {text}")
    finished = [r for key in ("passed", "failed") for r in terminalreporter.stats.get(key, [])]
    for report in finished:
        for name, value in getattr(report, "user_properties", []):
            if name == "process":
                write(str(value))
