"""Synchronised batch norm: two processes beside one process with the joint batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import gencore.nn
from gencore.nn import SyncBatchNorm
from tests.processes import run_python

# Run by each rank: its part of the joint batch through two steps of training, and one of evaluation.
RANK = """
import sys, torch, torch.distributed as dist
import gencore.nn
folder, rank, impl = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
case = torch.load(f"{folder}/case.pt")
layer = gencore.nn.SyncBatchNorm(3, activation="leaky_relu", negative_slope=0.2, impl=impl).to(case["x"].dtype)
layer.load_state_dict(case["state"])
first, last = case["parts"][rank]
x, residual, grad = (case[n][first:last].clone() for n in ("x", "residual", "grad"))
x.requires_grad_(), residual.requires_grad_()
run = torch.compile(layer, fullgraph=True, backend="aot_eager") if case.get("compiled") else layer
try:
    for _ in range(2):
        y = run(x, residual)
    y.backward(grad)
    grads = [x.grad, residual.grad, layer.weight.grad, layer.bias.grad]
    y_eval = layer.eval()(x.detach(), residual.detach())
    torch.save([y.detach(), *grads, y_eval.detach(), *layer.buffers()], f"{folder}/{rank}.pt")
except ValueError as error:
    torch.save(str(error), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


# Run by each rank: first and second derivatives of a layer on its part of the joint batch.
TWICE = """
import sys, torch, torch.distributed as dist
from tests.test_sync_batchnorm import SyncBatchNorm, make_layer, twice
folder, rank, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
case = torch.load(f"{folder}/case.pt")
first, last = case["parts"][rank]
layer = make_layer(kind, case["impl"])
layer.load_state_dict(case["state"])
layer = SyncBatchNorm.convert_sync_batchnorm(layer)
results = twice(layer, kind, *(case[n][first:last].clone() for n in ("x", "residual", "classes", "grad", "v")))
torch.save([*results, *layer.buffers()], f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def run_ranks(folder: Path, case: dict, last: str, script: str = RANK) -> list:
    from concurrent.futures import ThreadPoolExecutor

    torch.save(case, folder / "case.pt")
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(run_python, "-c", script, str(folder), str(rank), last, OMP_NUM_THREADS="1") for rank in (0, 1)
        ]
        for run in runs:
            assert run.result().returncode == 0, run.result().stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize(
    ("split", "impl", "dtype", "compiled"),
    [
        (4, "auto", torch.float32, False),
        (1, "auto", torch.float32, False),
        (0, "auto", torch.float32, False),
        (1, "reference", torch.float64, False),
        (2, "auto", torch.float32, True),
    ],
)
def test_two_ranks_equal_one_process(tmp_path, split, impl, dtype, compiled):
    """Equal batches, uneven ones, and one rank with no samples at all; in one graph too."""
    torch.manual_seed(0)
    single = gencore.nn.BatchNorm2d(3, activation="leaky_relu", negative_slope=0.2).to(dtype)
    with torch.no_grad():
        single.weight.uniform_(0.5, 2), single.bias.normal_()
    case = {n: torch.randn(6, 3, 4, 5, dtype=dtype) for n in ("residual", "grad")}
    case |= {"x": torch.randn(6, 3, 4, 5, dtype=dtype) * 2 + 3, "parts": [(0, split), (split, 6)], "compiled": compiled}
    case["state"] = {k: v.clone() for k, v in single.state_dict().items()}
    ranks = run_ranks(tmp_path, case, impl)
    x, residual = (case[n].clone().requires_grad_() for n in ("x", "residual"))
    for _ in range(2):
        y = single(x, residual)
    y.backward(case["grad"])
    wanted = [y.detach(), x.grad, residual.grad, single.weight.grad, single.bias.grad]
    wanted += [single.eval()(x.detach(), residual.detach()).detach()]
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    for i in (0, 1, 2, 5):
        torch.testing.assert_close(torch.cat([ranks[0][i], ranks[1][i]]), wanted[i], **close)
    for i in (3, 4):  # each rank has the part of its own samples: what is averaged over ranks adds up
        torch.testing.assert_close(ranks[0][i] + ranks[1][i], wanted[i], rtol=1e-5, atol=1e-5)
    for rank in ranks:
        for a, b in zip(rank[6:], single.buffers(), strict=True):
            torch.testing.assert_close(a, b, **(close if b.is_floating_point() else {}))


def make_layer(kind, impl="auto"):
    """A batch norm over 3 channels in float64: with an activation, bare, or with the gain and bias of 4 classes."""
    options = {"activation": "silu", "impl": impl}
    if kind == "bare":
        return gencore.nn.BatchNorm2d(3, affine=False, impl=impl).double()
    if kind == "plain":
        return gencore.nn.BatchNorm2d(3, **options).double()
    gain, bias = nn.Embedding(4, 3), nn.Embedding(4, 3)
    return gencore.nn.ConditionalBatchNorm2d(3, gain, bias, gain_offset=1.0, **options).double()


def twice(layer, kind, x, residual, classes, grad, v):
    """y; the gradients of <y, grad> for inputs and weights; and the gradients of <the first of them, v>."""
    leaves = [x.requires_grad_(), grad.requires_grad_(), *layer.parameters()]
    y = layer(x, classes) if kind == "conditional" else layer(x, residual)
    first = torch.autograd.grad(y, [x, *layer.parameters()], grad, create_graph=True)
    second = torch.autograd.grad((first[0] * v).sum(), leaves)
    return [t.detach() for t in (y, first[0], *second[:2], *first[1:], *second[2:])]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize(
    ("kind", "split", "impl"),
    [
        ("plain", 1, "auto"),
        ("bare", 2, "auto"),
        ("conditional", 3, "auto"),
        ("conditional", 1, "reference"),
        ("conditional", 0, "auto"),
    ],
)
def test_first_and_second_derivatives_of_two_ranks(tmp_path, kind, split, impl):
    """A conditional norm too, converted as BigGAN's networks need it."""
    torch.manual_seed(0)
    single = make_layer(kind)
    for parameter in single.parameters():
        nn.init.normal_(parameter)
    case = {n: torch.randn(6, 3, 4, 5, dtype=torch.float64) for n in ("x", "residual", "grad", "v")}
    case |= {"classes": torch.tensor([0, 3, 3, 1, 0, 3]), "parts": [(0, split), (split, 6)], "impl": impl}
    case["state"] = {k: v.clone() for k, v in single.state_dict().items()}
    ranks = run_ranks(tmp_path, case, kind, TWICE)
    wanted = twice(single, kind, *(case[n] for n in ("x", "residual", "classes", "grad", "v")))
    for i, value in enumerate(wanted):
        # Of inputs each rank has its samples; of weights what its samples give.
        parts = [rank[i] for rank in ranks]
        torch.testing.assert_close(torch.cat(parts) if i < 4 else sum(parts), value, rtol=1e-10, atol=1e-10)
    for rank in ranks:
        torch.testing.assert_close(rank[len(wanted) :], list(single.buffers()), rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_a_joint_batch_of_one_value_is_refused_everywhere(tmp_path):
    case = {n: torch.randn(1, 3, 1, 1) for n in ("x", "residual", "grad")} | {"parts": [(0, 0), (0, 1)]}
    case["state"] = gencore.nn.BatchNorm2d(3).state_dict()
    for message in run_ranks(tmp_path, case, "auto"):
        assert "expected more than 1 value per channel" in message


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_an_empty_joint_batch_leaves_the_running_statistics_alone(tmp_path):
    case = {n: torch.randn(0, 3, 2, 2) for n in ("x", "residual", "grad")} | {"parts": [(0, 0), (0, 0)]}
    case["state"] = gencore.nn.BatchNorm2d(3).state_dict()
    for *_, mean, var, batches in run_ranks(tmp_path, case, "auto"):
        assert torch.equal(mean, torch.zeros(3))
        assert torch.equal(var, torch.ones(3))
        assert batches == 2


REFUSALS = """
import sys, torch, torch.distributed as dist
import gencore.nn
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
bare = gencore.nn.SyncBatchNorm(3, affine=False, track_running_stats=False)
found = []
for layer, x in (
    (bare, torch.randn(2, 4, 3, 3)),
    (bare, torch.randn(2, 3, 1, 1, 1, 2)),
    (bare, torch.ones(2, 3, 4, dtype=torch.int64)),
    (gencore.nn.SyncBatchNorm(3, eps=-1.0), torch.randn(2, 3, 4)),
    (gencore.nn.SyncBatchNorm(3, device="meta"), torch.randn(2, 3, 4)),
):
    try:
        layer(x)
        found.append("")
    except (RuntimeError, ValueError) as error:
        found.append(str(error))
torch.save(found, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_bad_input_is_refused_before_the_processes_meet(tmp_path):
    wanted = ("must have 3 channels", "2 to 5 dimensions", "floating-point", "eps must not be negative", "is on meta")
    for found in run_ranks(tmp_path, {}, "", REFUSALS):
        for message, part in zip(found, wanted, strict=True):
            assert part in message


def test_alone_it_is_batch_norm():
    torch.manual_seed(0)
    plain, sync = gencore.nn.BatchNorm2d(3, activation="relu"), gencore.nn.SyncBatchNorm(3, activation="relu")
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(plain(x), sync(x))
    assert sync.state_dict().keys() == torch.nn.SyncBatchNorm(3).state_dict().keys()
    assert isinstance(sync, torch.nn.SyncBatchNorm)
    assert type(gencore.patch(torch.nn.SyncBatchNorm(3))) is gencore.nn.SyncBatchNorm
    with pytest.raises(ValueError, match="expected at least 2D input"):
        sync(torch.zeros(3))


def test_convert():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        gencore.nn.BatchNorm2d(4, activation="silu", momentum=None),
        nn.ModuleList([nn.BatchNorm1d(2)]),
    ).eval()
    before = model.state_dict()
    weight = model[1].weight
    converted = gencore.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted is model
    assert type(model[1]) is type(model[2][0]) is gencore.nn.SyncBatchNorm
    assert model[1].weight is weight
    assert model[1].activation == "silu"
    assert model[1].momentum is None
    assert not model[1].training
    assert list(model.state_dict()) == list(before)
    assert isinstance(gencore.nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(2)), gencore.nn.SyncBatchNorm)


def test_convert_conditional():
    generator = gencore.create_model("biggan_32", width=2, classes=3).generator.eval()
    before, z, y = generator.state_dict(), torch.randn(2, 128), torch.tensor([0, 2])
    images = generator(z, y)
    converted = SyncBatchNorm.convert_sync_batchnorm(generator)
    kinds = {type(m) for m in converted.modules() if isinstance(m, nn.modules.batchnorm._NormBase)}
    assert kinds == {SyncBatchNorm, gencore.nn.SyncConditionalBatchNorm2d}
    assert list(converted.state_dict()) == list(before)
    assert torch.equal(converted(z, y), images)
