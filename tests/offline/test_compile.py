"""Every Triton kernel compiles for every GPU, without spills, within shared memory, with 16-byte accesses.

The table of what each takes is committed as ``budgets.json``, so that a change of the generated code is seen in review:
``pytest tests/offline --update-budgets`` writes it anew. It says nothing about speed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs triton: pip install 'gencore[triton]'")

from tests.offline.compiler import MACHINES, TOOLS, compiling_for, resources  # noqa: E402
from tests.offline.launches import LAUNCHES, spectral_norm  # noqa: E402

BUDGETS = Path(__file__).with_name("budgets.json")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(Path(__file__).parents[2] / "build" / "triton"))


@pytest.mark.skipif(not (TOOLS / "nvdisasm").exists(), reason="this build of triton has no disassembler")
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("launch", LAUNCHES)
def test_kernels_compile_within_their_budget(launch: str, machine: str, pytestconfig: pytest.Config) -> None:
    with compiling_for(MACHINES[machine]) as compiled:
        LAUNCHES[launch]()
    assert compiled, "the launcher launched nothing"
    table = {}
    for index, (name, kernel) in enumerate(compiled):
        row = resources(kernel)
        where = f"{name} of {launch} on {machine}: {row}"
        assert row.spills == 0, where
        assert row.shared <= MACHINES[machine].shared_limit, where
        assert name.startswith(("_sum", "_finish", "_gather")) or row.wide_loads > 0, f"no 16-byte load in {where}"
        table[f"{index} {name}"] = row.row()
    _compare(launch, machine, table, bool(pytestconfig.getoption("--update-budgets")))


def _compare(launch: str, machine: str, table: dict[str, Any], update: bool) -> None:
    committed = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    if update:
        committed["triton"] = triton.__version__
        committed.setdefault(launch, {})[machine] = table
        order = ["triton", *LAUNCHES]
        kept = {key: committed[key] for key in order if key in committed}
        BUDGETS.write_text(json.dumps(kept, indent=1) + "\n")
    elif committed.get("triton") == triton.__version__:
        assert table == committed.get(launch, {}).get(machine), (
            "the generated code has changed; look at it, then run with --update-budgets"
        )


@pytest.mark.parametrize("layers", [1, 3, 128])
def test_spectral_norm_of_all_layers_is_one_launch_of_programs_that_run_together(layers: int) -> None:
    with compiling_for(MACHINES["sm_90"]) as compiled:
        spectral_norm(torch.float32, *[(8, 8)] * layers)()
    assert [name for name, _ in compiled] == ["_iterate", "_differentiate"]
    for _, kernel in compiled:
        assert kernel.metadata.launch_cooperative_grid
        # One program a processor is always possible: it has 65,536 registers and at least 48 KiB of shared memory.
        assert 32 * kernel.metadata.num_warps * 255 <= 65536
        assert kernel.metadata.shared <= 48 * 1024
