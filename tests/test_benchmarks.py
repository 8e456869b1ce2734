"""The benchmark suite itself: that a wrong kernel gets no time, and that what it reports is what it measured."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import gencore
from benchmarks import Report, Result, Settings, allocator, engines, gpu_report, models, plain_stylegan2, read_json, run
from benchmarks.__main__ import main
from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem, all_cases
from benchmarks.compare import compare_reports
from benchmarks.machine import Peaks
from benchmarks.measure import pairwise_ratio, peak_bytes, spread, time_in_turn
from benchmarks.parity import Gate, Verdict, relative_error
from benchmarks.result import judge
from benchmarks.runner import compare, contenders, run_case
from benchmarks.tables import committed_report, documents, generate, rows_of, write_tables

PEAKS = Peaks({"float32": 100.0}, ((1000, 10.0), (100_000, 40.0)), "made up")
FAST = Settings(compiled=False, seconds=0.0, rounds=3)


@pytest.fixture(autouse=True)
def made_up_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is not measured in tests: others may be using it."""
    monkeypatch.setattr("benchmarks.runner.measure_peaks", lambda device: PEAKS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine would take most of the time of these tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Scale(Case):
    """y = 3 x^2, with errors to order."""

    op = "scale"
    differentiable = ("x",)
    modes = ("forward", "forward+backward", "double backward")
    problems = (Problem("64", quick=True),)

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        return {"x": make.normal(8, 8)}

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        return (inputs["x"],), {}

    def ours(self, problem: Problem, inputs: Inputs, impl: str) -> Outputs:
        x = inputs["x"]
        if impl == "triton":
            raise gencore.UnsupportedImplementation("no such thing here")
        if impl == "reference":
            return (3 * x * x,)
        if self.wrong == "shape":
            return (3 * x[:4] * x[:4],)
        if self.wrong == "nan":
            return ((3 * x * x).masked_fill(x == x.max(), float("nan")),)
        if self.wrong == "gradient":
            return (3 * x.detach() * x,)
        if self.wrong == "rounding":
            return (3 * x * x * (1 + 2e-6),)
        return (3 * x * x,)

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        x = inputs["x"]
        return (4 * x * x if self.wrong == "peer" else 3 * x.square(),)

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        return Cost(flops=128, bytes=64 * itemsize * 2)

    def resolve(self, problem: Problem, inputs: Inputs, impl: str) -> str:
        return "cpu" if impl == "auto" else impl


@pytest.mark.parametrize("wrong", ["shape", "nan", "gradient", "rounding"])
def test_a_wrong_kernel_gets_no_time(wrong: str) -> None:
    rows = run_case(Scale(wrong), FAST)
    assert len(rows) == 3
    assert all(r.status.startswith("wrong") and r.ratio is None and r.ours_ms is None for r in rows)


def test_a_right_kernel_is_timed_in_every_mode() -> None:
    rows = run_case(Scale(), FAST)
    assert [(r.mode, r.impl, r.peer, r.status) for r in rows] == [(m, "cpu", "eager", "ok") for m in Scale.modes]
    for row in rows:
        assert row.rounds >= 3
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.gbs == pytest.approx(row.bytes / row.ours_ms / 1e6)
        assert row.error <= row.allowed


def test_a_row_names_what_runs_in_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` may choose otherwise where gradients are recorded."""
    monkeypatch.setattr(
        Scale, "resolve", lambda self, problem, inputs, impl: "cpu" if inputs["x"].requires_grad else "reference"
    )
    rows = run_case(Scale(), FAST)
    assert [(r.mode, r.impl) for r in rows] == [(m, "reference" if m == "forward" else "cpu") for m in Scale.modes]


def test_a_peer_that_computes_something_else_is_named_and_not_timed() -> None:
    rows = run_case(Scale("peer"), FAST)
    assert all(r.peer == "eager" and r.status.startswith("computes something else") and r.ratio is None for r in rows)


def test_an_unsupported_implementation_says_so() -> None:
    rows = run_case(Scale(), replace(FAST, impls=("triton",)))
    assert {r.status for r in rows} == {"unsupported: no such thing here"}


def test_the_gate_allows_twice_pytorchs_own_error() -> None:
    problem = Scale.problems[0]
    inputs = {"x": torch.randn(64, 64).bfloat16()}
    gate = Gate(Scale(), problem, inputs, ["forward"])
    own = relative_error(3 * inputs["x"] * inputs["x"], 3 * inputs["x"].double() ** 2)
    verdict = gate.ours(lambda x: (3 * x["x"] * x["x"],))
    assert verdict.error == pytest.approx(own)
    assert verdict.allowed == pytest.approx(max(2 * own, 4 * torch.finfo(torch.bfloat16).eps))
    assert not gate.ours(lambda x: (3.2 * x["x"] * x["x"],)).passed


def test_relative_error_sees_shapes_and_nans() -> None:
    one = torch.tensor([1.0, float("inf"), float("nan")])
    assert relative_error(one, one) == 0
    assert relative_error(one[:2], one) == float("inf")
    assert relative_error(torch.ones(3), one) == float("inf")
    assert relative_error(torch.tensor([1.5, -2.0]), torch.tensor([1.0, -2.0])) == 0.25


class FakeClock:
    """Time passes only where a call says so."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *seconds: float):
        durations = iter([*seconds] * 10_000)

        def run() -> None:
            self.order.append(name)
            self.now += next(durations)

        return run


def test_times_are_taken_in_turn_and_ratios_round_by_round() -> None:
    clock = FakeClock()
    # The third round is disturbed for both alike: the pairwise ratio does not see it, a ratio of means would.
    calls = {"ours": clock.call("ours", 1, 1, 9), "peer": clock.call("peer", 4, 6, 45)}
    times = time_in_turn(calls, seconds=0, rounds=3, warmups=3, clock=clock)
    assert clock.order[6:] == ["ours", "peer"] * 3
    assert times == {"ours": [1, 1, 9], "peer": [4, 6, 45]}
    ratio = pairwise_ratio(times["peer"], times["ours"])
    assert (ratio.low, ratio.median, ratio.high) == (4.5, 5.0, 5.5)


def test_short_calls_are_repeated_within_a_sample() -> None:
    clock = FakeClock()
    times = time_in_turn({"a": clock.call("a", 1e-4)}, seconds=0, rounds=2, warmups=1, clock=clock)
    assert times["a"] == pytest.approx([1e-4, 1e-4])
    assert len(clock.order) == 1 + 2 * (1 + 100)  # the warm-up, and a settling call before each sample of 10 ms


def test_spread() -> None:
    assert spread([3.0]) == spread([3.0, 3.0, 3.0])
    found = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)


def test_peak_bytes_counts_what_lives_at_the_same_time() -> None:
    x = torch.ones(1000)

    def freed_in_between() -> torch.Tensor:
        y = x + x
        del y
        return x + x

    assert peak_bytes(freed_in_between) == 4000
    assert peak_bytes(lambda: (x + x) + (x - x)) == 12000
    assert peak_bytes(lambda: x) in (0, None)


def test_the_limit_is_compute_or_memory() -> None:
    assert PEAKS.bandwidth(1) == 10
    assert PEAKS.bandwidth(10_000) == pytest.approx(25)
    assert PEAKS.bandwidth(1e9) == 40
    assert PEAKS.limit_seconds(1e9, 1000, "float32") == (0.01, "compute")
    assert PEAKS.limit_seconds(1, 4e9, "bfloat16") == (pytest.approx(0.1), "memory")


def test_compare_puts_the_numbers_in_the_right_places() -> None:
    x = torch.randn(256, 256)
    base = Result("op", "o", "p", "forward", "float32", "contiguous", "cpu", "", "")
    slow = {"slow": lambda: [x @ x for _ in range(20)]}
    (row,) = compare(base, {"cpu": lambda: x + x}, slow, Cost(1e6, 4e5), FAST)
    assert row.ratio > 1
    assert row.peer_ms > row.ours_ms
    assert row.gflops == pytest.approx(1e6 / row.ours_ms / 1e6)
    row = judge(row, PEAKS)
    assert row.limit == "memory"
    assert row.share == pytest.approx(4e5 / 40e9 / (row.ours_ms / 1e3))
    assert row.share / row.peer_share == pytest.approx(row.peer_ms / row.ours_ms)
    assert row.peak_bytes == x.nbytes


def test_what_fails_while_running_is_a_row() -> None:
    def broken() -> None:
        raise RuntimeError("out of luck\nand more")

    base = Result("op", "o", "p", "forward", "float32", "contiguous", "cpu", "", "")
    (row,) = compare(base, {"cpu": lambda: None}, {"peer": broken}, Cost(1, 1), FAST)
    assert row.status == "failed: RuntimeError: out of luck"
    assert row.ratio is None


# --- reports ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def report() -> Report:
    base = Result(
        kind="op",
        op="scale",
        problem="64",
        mode="forward",
        dtype="float32",
        layout="contiguous",
        device="cpu",
        impl="cpu",
        peer="eager",
        ours_ms=2.0,
        peer_ms=5.0,
        ratio=2.5,
        ratio_low=2.4,
        ratio_high=2.6,
        rounds=9,
        flops=1e6,
        bytes=4e6,
        gflops=0.5,
        gbs=2.0,
        limit="memory",
        share=0.05,
        peer_share=0.02,
        peak_bytes=2**20,
        peer_peak_bytes=2**21,
        error=1e-7,
        allowed=1e-6,
        threads=2,
        allocator="tuned",
        commit="abc",
        date="2026-01-01",
    )
    lost = replace(base, mode="forward+backward", ratio=0.5, ratio_low=0.4, ratio_high=0.6, peer_ms=1.0)
    wrong = replace(base, op="other", status="wrong: output 0", ours_ms=None, ratio=None)
    machine = {"processor": "A Processor", "cores": 2, "instruction_set": "avx2"}
    return Report(machine, {"torch": "2.13"}, PEAKS, [base, lost, wrong])


def test_json_and_csv_round_trip(report: Report, tmp_path: Path) -> None:
    report.write_json(tmp_path / "r.json")
    assert read_json(tmp_path / "r.json") == report
    body = json.loads((tmp_path / "r.json").read_text())
    assert set(body) == {"schema", "machine", "versions", "peaks", "results"}
    report.write_csv(tmp_path / "r.csv")
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["ratio"] for row in rows] == ["2.5", "0.5", ""]
    assert rows[0]["processor"] == "A Processor"
    assert rows[0]["torch_version"] == "2.13"
    (tmp_path / "r.json").write_text(json.dumps({**body, "schema": 0}))
    with pytest.raises(ValueError, match="schema"):
        read_json(tmp_path / "r.json")


def test_a_new_report_replaces_whole_ops_of_the_old_one(report: Report) -> None:
    new = replace(report.results[0], problem="128", ratio=3.0)
    faster = Peaks({"float32": 200.0}, ((1000, 5.0), (100_000, 80.0)), "made up")
    merged = Report(report.machine, report.versions, faster, [new]).merged_over(report)
    assert [(r.op, r.problem, r.mode) for r in merged.results] == [
        ("other", "64", "forward"),
        ("scale", "64", "forward+backward"),
        ("scale", "128", "forward"),
    ]
    assert merged.peaks == Peaks({"float32": 200.0}, ((1000, 10.0), (100_000, 80.0)), "made up")
    again = rows_of(merged, "scale")[-1]
    assert again.share == pytest.approx(4e6 / 80e9 / 2e-3)


def test_tables_show_wins_losses_and_failures(report: Report, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "scale.md"
    page.write_text("before\n<!-- benchmarks:scale -->\nstale\n<!-- /benchmarks -->\nafter\n")
    report.write_json(tmp_path / "r.json")
    assert write_tables(tmp_path, tmp_path / "r.json") == [page]
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert "| 2 ms | eager | 5 ms | 2.50x (2.40 to 2.60) |" in text
    assert "0.50x (0.40 to 0.60)" in text
    assert write_tables(tmp_path, tmp_path / "r.json") == []
    short = generate("<!-- benchmarks:summary-ops -->\n<!-- /benchmarks -->", report)
    assert "|  | size | mode | layout | time | vs eager | of limit |" in short
    assert "| scale | 64 | forward | contiguous | 2 ms | 2.50x | 5.0% (memory) |" in short
    assert "| scale | 64 | forward+backward | contiguous | 2 ms | 0.50x |" in short
    assert "wrong: output 0" in short
    with pytest.raises(ValueError, match="unheard"):
        generate("<!-- benchmarks:unheard -->\n<!-- /benchmarks -->", report)


def test_charts(report: Report, tmp_path: Path) -> None:
    plots = pytest.importorskip("benchmarks.plots")
    paths = plots.draw(report, tmp_path)
    assert [p.name for p in paths] == ["ratios.png", "roofline.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


def test_committed_tables_are_generated_from_the_committed_results() -> None:
    report = committed_report()
    assert report.results
    for path in documents():
        assert generate(path.read_text(), report) == path.read_text(), f"{path} is out of date: run `make docs`"
    assert not [r for r in report.results if r.status.startswith("wrong")]


# --- the cases and the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", sorted(all_cases()))
def test_every_case_passes_its_gate_and_its_eager_twin_computes_the_same(op: str) -> None:
    case = all_cases()[op]
    assert hasattr(gencore.functional, op)
    problem = case.problems[0]
    modes = problem.modes or case.modes
    inputs = case.inputs(problem, Maker(torch.float32, torch.device("cpu"), "contiguous", torch.Generator()))
    entered = contenders(case, problem, inputs, Gate(case, problem, inputs, modes), impls=("auto",), compiled=False)
    assert entered.ours, entered.refused_ours
    assert entered.peers, entered.refused_peers
    assert not entered.refused_peers
    for mode in modes:
        cost = case.cost(problem, mode, 4)
        assert cost.flops > 0
        assert cost.bytes > 0


@pytest.mark.parametrize(
    ("network", "name"),
    [("SNGAN-32", "sngan_32"), ("SNGAN-128", "sngan_128"), ("BigGAN-128", "biggan_128")],
)
def test_spectral_norm_is_timed_on_the_weights_of_the_networks(network: str, name: str) -> None:
    """Every weight of a discriminator, and nothing else."""
    case = all_cases()["spectral_norm_list"]
    problem = next(p for p in case.problems if p["network"] == f"{network} discriminator")
    inputs = case.inputs(problem, Maker(torch.float32, torch.device("cpu"), "contiguous", torch.Generator()))
    counted = sum(x.numel() for n, x in inputs.items() if n.startswith("weight"))
    with torch.device("meta"):
        discriminator = gencore.create_model(name).discriminator
    weights = [p for p in discriminator.parameters() if p.dim() > 1]
    assert counted == sum(p.numel() for p in weights)
    assert len([n for n in inputs if n.startswith("weight")]) == len(weights)


def test_run_from_python() -> None:
    rows = run(["reparameterize_kl"], quick=True, seconds=0.0, rounds=2, threads=1)
    assert rows
    assert all(r.status == "ok" and r.threads == 1 for r in rows)
    with pytest.raises(ValueError, match="unheard_of"):
        run(["unheard_of"])


def test_command_line_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--op", "unheard_of", "--allocator", allocator.current()]) == 2
    assert "unheard_of" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["run", "--layout", "sideways"])
    assert main(["list"]) == 0
    assert "reparameterize_kl" in capsys.readouterr().out


def test_allocator_environments() -> None:
    assert allocator.environment("tuned").items() >= allocator.TUNING.items()
    assert not allocator.environment("stock").keys() & allocator.TUNING.keys()
    assert allocator.current() in allocator.CHOICES


def test_native_yardsticks() -> None:
    if not gencore.extension.EXTENSION.loaded:
        pytest.skip("needs the C++ extension")
    native = torch.ops.gencore_c
    assert native.fma_peak(200) == 2 * native.fma_peak(100) > 0
    source = torch.randn(16 * 1001)
    for streaming in (False, True):
        destination = torch.zeros_like(source)
        native.copy_peak(source, streaming, destination)
        assert torch.equal(source, destination)
    with pytest.raises(RuntimeError, match="multiple of 16"):
        native.copy_peak(torch.zeros(8), False, torch.zeros(8))
    with pytest.raises(RuntimeError, match="elements"):
        native.copy_peak(torch.zeros(32), False, torch.zeros(16))


def test_rows_of_main_table(report: Report) -> None:
    assert [r.op for r in rows_of(report, "summary-ops")] == ["scale", "scale", "other"]
    assert rows_of(report, "summary-models") == []


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_model_with_wrong_gradients_is_refused() -> None:
    own, plain = (gencore.models.create_model("vae_mlp", layers=layers, hidden=16) for layers in ("gencore", "torch"))
    own.load_state_dict(plain.state_dict())
    images = torch.rand(4, 1, 28, 28) * 2 - 1
    for mode in models.MODES:
        assert models.judge_parity(own, plain, images, mode).passed
    own.decoder[0].register_full_backward_hook(lambda module, grads, outputs: tuple(1.01 * g for g in grads))
    verdict = models.judge_parity(own, plain, images, "training step")
    assert not verdict.passed
    assert verdict.where.startswith("gradient of encoder")
    with torch.no_grad():
        own.decoder[1].bias += 0.01
    assert not models.judge_parity(own, plain, images, "inference").passed


@pytest.mark.parametrize("mode", models.MODES)
def test_a_stylegan2_with_wrong_values_is_refused(mode: str) -> None:
    """Each mode's gate sees a wrong gradient or image where that mode would have it."""
    options = {"resolution": 8, "latent": 8, "style": 8, "channel_budget": 64, "max_channels": 8}
    torch.manual_seed(0)
    own, plain = (gencore.create_model("stylegan2_64", layers=x, **options) for x in ("gencore", "torch"))
    own.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, 8, 8)
    assert models.judge_parity(own, plain, images, mode).passed
    part = own.discriminator.blocks["8"].conv1 if mode == "R1 step" else own.generator.synthesis.blocks["8"].conv0
    part.register_forward_hook(lambda module, inputs, output: 1.001 * output)
    assert not models.judge_parity(own, plain, images, mode).passed


@pytest.mark.parametrize("formulation", plain_stylegan2.FORMULATIONS)
def test_plain_stylegan2_is_stylegan2(formulation: str) -> None:
    torch.manual_seed(0)
    model = gencore.create_model("stylegan2_32", latent=8, style=8, channel_budget=256, max_channels=12).double()
    for name, parameter in model.named_parameters():
        if name.endswith(("noise_strength", "bias")):
            torch.nn.init.normal_(parameter)
    plain = plain_stylegan2.plain_stylegan2(model, formulation)
    fake = model(model.sample_latent(4), noise="const")
    z = torch.randn(4, 8).double()
    torch.testing.assert_close(plain(z, noise="const"), model(z, noise="const"), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(plain.discriminator(fake), model.discriminator(fake), rtol=1e-9, atol=1e-10)


def test_model_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.models.measure_peaks", lambda device: PEAKS)
    cases = (models.ModelCase("vae_mlp", 4, options={"hidden": 16}),)
    rows = models.run_models(cases=cases, settings=FAST, threads=1)
    assert {(r.mode, r.layout, r.peer) for r in rows if "eager" in r.peer} == set(
        itertools.product(cases[0].modes, ("contiguous", "channels_last"), ("eager", "eager, channels_last"))
    )
    assert all(r.status == "ok" and r.kind == "model" and r.flops > 0 and r.ratio > 0 for r in rows)
    with pytest.raises(ValueError, match="unheard_of"):
        models.run_models(["unheard_of"])


@pytest.mark.parametrize(("mode", "compiled"), [("inference", 4), ("training step", 2)])
def test_peers_of_a_stylegan2(mode: str, compiled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of writing it, in both layouts, plain and compiled."""
    seen: set[str] = set()
    monkeypatch.setattr("benchmarks.models.measure_peaks", lambda device: PEAKS)
    monkeypatch.setattr(models, "judge_parity", lambda *args: Verdict(True, 0.0, 1.0, ""))
    monkeypatch.setattr(models, "_call", lambda *args, **kwargs: lambda: None)
    monkeypatch.setattr(models, "_engines", lambda *args: {})
    monkeypatch.setattr(models, "compare", lambda base, ours, peers, *rest: seen.update(peers) or [])
    cases = (models.ModelCase("stylegan2_32", 4, modes=(mode,), options={"resolution": 8, "max_channels": 8}),)
    models.run_models(cases=cases, settings=replace(FAST, compiled=True), threads=1)
    assert {f"eager, {how}{layout}" for how in ("grouped", "scaled") for layout in ("", ", channels_last")} < seen
    assert len([name for name in seen if name.startswith("compile, ")]) == compiled


def test_a_unit_at_its_kink_refuses_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict that hangs on one batch is asked for again on another; one that stands on all of them holds."""
    verdicts = [Verdict(False, 3e-3, 7e-6, "gradient of a"), Verdict(True, 1e-6, 7e-6, "gradient of b")]
    seen = []

    def judge(own: object, plain: object, images: torch.Tensor, latent: torch.Tensor, mode: str) -> Verdict:
        seen.append(images)
        return verdicts[min(len(seen), len(verdicts)) - 1]

    monkeypatch.setattr(models, "_judge_batch", judge)
    model = gencore.models.create_model("dcgan_32", width=4)
    images = torch.rand(2, 3, 32, 32)
    assert models.judge_parity(model, model, images, "training step").passed
    assert len(seen) == 2
    assert not torch.equal(*seen)
    del verdicts[1], seen[:]
    assert not models.judge_parity(model, model, images, "training step").passed
    assert len(seen) == models.BATCHES


# --- comparing two files ---------------------------------------------------------------------------------------------


def test_compare_two_files(report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = replace(report.results[0], ratio=2.0, ratio_low=1.9, ratio_high=2.1, commit="def")
    noisy = replace(report.results[1], ratio=0.45, ratio_low=0.3, ratio_high=0.65)
    new = Report(report.machine, report.versions, PEAKS, [slower, noisy])
    first, second = compare_reports(report, new)
    assert first.factor == pytest.approx(0.8)
    assert (first.slower, first.faster) == (True, False)
    assert (second.slower, second.faster) == (False, False)
    assert compare_reports(new, report)[0].faster
    report.write_json(tmp_path / "a.json")
    new.write_json(tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert main(["compare", str(tmp_path / "b.json"), str(tmp_path / "a.json")]) == 0
    other = Report({**report.machine, "cores": 64}, report.versions, PEAKS, [slower])
    with pytest.raises(ValueError, match="different machines"):
        compare_reports(report, other)


# --- the model of GPUs -----------------------------------------------------------------------------------------------


def test_a_traced_chain_counts_each_kernel_and_no_view() -> None:
    a = torch.empty(8, 4, device="meta")
    with gpu_report.Trace() as trace:
        b = a[:4].t()  # a view, and an allocation
        torch.empty_like(b)
        (b + 1) @ a[:4]
        a.expand(3, 8, 4).sum(0)
    assert [(k.name, k.bytes, k.flops, k.matrix) for k in trace.kernels] == [
        ("add.Tensor", 4 * (16 + 16), 16, False),
        ("mm.default", 4 * (16 + 16 + 16), 2 * 4 * 4 * 4, True),
        ("sum.dim_IntList", 4 * (32 + 32), 96, False),
    ]


def test_batch_norm_reads_twice_only_in_training() -> None:
    case = all_cases()["batch_norm_act"]
    size = 4 * 64 * 128 * 32 * 32
    training, evaluation = (p for p in case.problems if p.quick)
    found = gpu_report.model(case, training, "forward+backward", "float32")
    assert [round(k.bytes / size) for k in found.chain] == [3, 2, 3, 5]
    found = gpu_report.model(case, evaluation, "forward", "float32")
    assert [round(k.bytes / size) for k in found.chain] == [2, 2]


def test_the_roofline_of_a_gpu() -> None:
    gpu = gpu_report.GPU("G", "sm_0", memory=1000, vector=10, matrix={"float32": 100, "bfloat16": 200})
    assert gpu.seconds(gpu_report.Kernel("copy", 1e9, 1), "float32") == pytest.approx(1e-3)
    assert gpu.seconds(gpu_report.Kernel("sin", 1, 1e10), "bfloat16") == pytest.approx(1e-3)
    assert gpu.seconds(gpu_report.Kernel("mm", 1, 1e12, matrix=True), "bfloat16") == pytest.approx(5e-3)
    chain = (gpu_report.Kernel("a", 1e9, 1), gpu_report.Kernel("b", 3e9, 1))
    model = gpu_report.Model("o", "p", "forward", "float32", chain, gpu_report.Kernel("o", 2e9, 1))
    assert model.seconds(gpu) == (pytest.approx(2e-3), pytest.approx(4e-3))


def test_compiled_takes_the_worst(tmp_path: Path) -> None:
    used = {"registers": 10, "spills": 0, "shared": 8}
    budgets = {
        "triton": "3",
        "scale float32": {"sm_80": {"0 _forward": used}, "sm_90": {"0 _forward": used}},
        "scale_backward float32": {"sm_80": {"0 _a": {**used, "registers": 30}, "1 _b": {**used, "spills": 2}}},
        "scaled float32": {"sm_80": {"0 _forward": {**used, "registers": 99}}},
    }
    (tmp_path / "b.json").write_text(json.dumps(budgets))
    found = gpu_report.compiled("scale", "sm_80", tmp_path / "b.json")
    assert found == gpu_report.Compiled(kernels=3, registers=30, spills=2, shared=8)
    assert gpu_report.compiled("scale", "gfx942", tmp_path / "b.json") is None
    assert gpu_report.compiled("scale", "sm_80", tmp_path / "none.json") is None


def test_gpu_report_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu-report", "--dtype", "float32"]) == 0
    out = capsys.readouterr().out
    assert "A model, not a measurement" in out
    assert all(op in out for op in all_cases())


def test_inference_engines_compute_the_same() -> None:
    """Where they are installed; where they are not, their rows are left out."""
    found = engines.available()
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = torch.randn(2, 3, 5, 5)
    calls = engines.inference_calls(model, x)
    assert set(calls) == set(found)
    for call in calls.values():
        torch.testing.assert_close(call(), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_all_implementations() -> None:
    rows = run(["reparameterize_kl"], quick=True, impls=("all",), modes=("forward",), seconds=0.0, rounds=1)
    assert [row.impl for row in rows] == ["triton", "cpu", "reference"]
    assert rows[0].status.startswith("unsupported"), "its tensors are on the CPU, and nothing falls back"
