"""``gencore demo``: the op table, generative models trained on real digits, and a report with pictures."""

from __future__ import annotations

import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gencore import memory
from gencore.apps import pictures
from gencore.apps.report import Report, Table
from gencore.apps.step_timing import StepTiming, compare_allocators, compare_with_torch
from gencore.apps.tools import caching
from gencore.data import mnist5k, split
from gencore.models import create_model
from gencore.optional import require
from gencore.train import GANTraining, VAETraining, fit

# Small batches and a narrow network: in the time that a demonstration has, many small steps make better digits.
BATCH = 32
DRAWING = 8.0  # seconds for pictures and report
GAN_NAME = "dcgan_32"
GAN_OPTIONS: dict[str, Any] = {"channels": 1, "width": 32, "negative_slope": 0.2}


def run_demo(
    out: str | Path = "out/demo", *, seconds: float = 220.0, steps: int | None = None, op_table: bool = True
) -> Path:
    """Run the demonstration and return the report, ``out/report.html``.

    Args:
        out: the folder for pictures and report; made if need be.
        seconds: for everything together. Training takes what the measurements leave of it, but three tenths at least,
            and ends sooner where its steps are done sooner.
        steps: train each model for this many steps at most and time few rounds, for a quick look.
        op_table: whether to time every op first.

    Raises:
        gencore.optional.MissingPackage: if rich, matplotlib, jinja2, pillow or mlxtend is not installed.
        ValueError: if ``seconds`` or ``steps`` is not positive.
    """
    if seconds <= 0 or (steps is not None and steps <= 0):
        raise ValueError(f"demo: seconds and steps must be positive, got seconds={seconds}, steps={steps}")
    for package in ("matplotlib", "jinja2", "PIL"):
        require(package, extra="bench", purpose="the demo")
    console = require("rich.console", extra="bench", purpose="the demo").Console()
    if not console.is_terminal:
        console = type(console)(width=150)  # in a file or a pipe nothing is too wide
    started = time.monotonic()
    torch.manual_seed(0)
    images, labels = mnist5k()
    (train, _), (test, test_labels) = split(images, labels)
    report = Report(Path(out))
    report.out.mkdir(parents=True, exist_ok=True)

    _measure(report, console, train[:BATCH], op_table=op_table, quick=steps is not None)
    with caching():
        console.rule(f"training on {len(train):,} handwritten digits")
        vae, vae2, gan = (
            VAETraining(create_model("vae_32")),
            VAETraining(create_model("vae_32_latent2")),
            _gan_training(),
        )
        now = time.monotonic()
        end = max(started + seconds - DRAWING, now + 0.3 * seconds)
        # The last of the three gets all the time that is left.
        plan = (("VAE", vae, 2500, 6), ("VAE, 2-d latent", vae2, 2500, 5), ("DCGAN", gan, 4800, 1))
        for label, training, enough, part in plan:
            left = end - time.monotonic()
            fit(
                training,
                train,
                steps=steps or enough,
                batch_size=BATCH,
                seconds=left / part,
                label=label,
                console=console,
            )
    _draw(report, vae, vae2, gan, train, test, test_labels)
    path = report.write(time.monotonic() - started)
    console.print(f"\nwrote [bold]{path}[/] and its pictures; {time.monotonic() - started:.0f} s in all")
    return path


# --- measuring -------------------------------------------------------------------------------------------------------


def _measure(report: Report, console: Any, batch: Tensor, *, op_table: bool, quick: bool) -> None:
    if find_spec("benchmarks") is None:
        _note(report, console, "no timings: the benchmarks are in the source tree only; run the demo in a checkout")
        return
    if op_table:
        console.rule("ops beside PyTorch")
        with caching():
            report.tables.append(_op_table(report, console))
    console.rule("training steps beside torch.nn")
    seconds, rounds = (0.0, 2) if quick else (3.0, 11)
    models = [("vae_32", {}), (GAN_NAME, GAN_OPTIONS)]
    with caching(), console.status("measuring"):
        timings = compare_with_torch(models, batch=len(batch), seconds=seconds, rounds=rounds)
    if memory.is_available():
        with console.status("measuring"):
            timings.append(compare_allocators(GAN_NAME, _gan_training(), _channels_last(batch), rounds=rounds))
    else:
        _note(report, console, "no caching allocator: it is not built; `gencore env` says why, and what to do")
    report.tables.append(_step_table(console, timings))


def _gan_training() -> GANTraining:
    return GANTraining(
        create_model(GAN_NAME, **GAN_OPTIONS).to(memory_format=torch.channels_last), learning_rate=3e-4, ema=0.998
    )


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _note(report: Report, console: Any, text: str) -> None:
    report.notes.append(text)
    console.print(f"[yellow]note:[/] {text}", highlight=False)


def _op_table(report: Report, console: Any) -> Table:
    """Every implementation of every op beside PyTorch; those that cannot run here are named once, in a note."""
    runner, result, layout = (import_module(f"benchmarks.{name}") for name in ("runner", "result", "report"))
    with console.status("measuring the machine") as status:
        rows = runner.run(quick=True, impls=("all",), seconds=0.3, progress=status.update)
    absent = {row.impl: row.status for row in rows if row.status.startswith("unsupported")}
    rows = [row for row in rows if not row.status.startswith("unsupported")]
    found = result.Report.of(rows, threads=torch.get_num_threads())
    layout.print_report(found, console)
    for impl, why in absent.items():
        _note(report, console, f"no row of impl={impl!r}: {why.partition('cannot run here: ')[2] or why}")
    return Table("Ops beside PyTorch", layout.COLUMNS, [layout.cells(row) for row in rows], layout.caption(found))


def _step_table(console: Any, timings: list[StepTiming]) -> Table:
    columns = ("training step", "with", "steps/s", "against", "its steps/s", "faster", "gradients off by")
    rows: list[tuple[str, ...]] = [
        (
            timing.what,
            timing.ours,
            f"{timing.ours_per_second:.1f}",
            timing.other,
            f"{timing.other_per_second:.1f}",
            f"{timing.ratio:.2f}x ({timing.low:.2f} to {timing.high:.2f})",
            timing.parity,
        )
        if timing.status == "ok"
        else (timing.what, timing.ours, "", timing.other, "", timing.status, "")
        for timing in timings
    ]
    caption = (
        "Whole steps (forward, backward, Adam) in turn on the same batch from the same weights, with the same "
        "allocator on both sides unless it is what is compared. 'Faster' is the median of the ratios taken round by "
        "round, with its quartiles; 'gradients off by' compares with float64."
    )
    rich_table = require("rich.table", extra="bench", purpose="the demo").Table
    printed = rich_table(*columns, header_style="bold", pad_edge=False)
    for row in rows:
        printed.add_row(*row)
    console.print(printed)
    return Table("Training steps beside torch.nn", columns, rows, caption)


# --- drawing ---------------------------------------------------------------------------------------------------------


def _draw(
    report: Report,
    vae: VAETraining,
    vae2: VAETraining,
    gan: GANTraining,
    train: Tensor,
    test: Tensor,
    test_labels: Tensor,
) -> None:
    one_of_each = torch.stack([test[test_labels == digit][0] for digit in range(10)])
    for name, title, caption, grid, columns in (
        (
            "samples_dcgan",
            "DCGAN: samples",
            "Random z, drawn by the running average of the generator.",
            pictures.gan_samples(gan, 128, seed=0),
            16,
        ),
        (
            "samples_vae",
            "VAE: samples",
            "Random z from the prior; softer, as a mean image is.",
            pictures.vae_samples(vae.model, 128, seed=0),
            16,
        ),
        (
            "reconstructions",
            "VAE: unseen digits and their reconstructions",
            "In pairs: a digit that was not trained on, and what ten latent numbers keep of it.",
            pictures.reconstructions(vae.model, test[:64]),
            16,
        ),
        (
            "neighbours",
            "DCGAN: samples and the training digits nearest to them",
            "In pairs, so that copies would show.",
            pictures.beside_nearest(pictures.gan_samples(gan, 64, seed=1), train),
            16,
        ),
        (
            "walk_dcgan",
            "DCGAN: walks through latent space",
            "Each row goes straight from one random z to another.",
            pictures.gan_walk(gan, rows=8, columns=16, seed=3),
            16,
        ),
        (
            "walk_vae",
            "VAE: from each digit to the next",
            "Straight lines between the codes of unseen digits.",
            pictures.vae_walk(vae.model, one_of_each[:-1], one_of_each[1:], columns=16),
            16,
        ),
        (
            "manifold",
            "The manifold of a VAE with two latent dimensions",
            "Points equally likely under the prior: neighbours look alike.",
            pictures.manifold(vae2.model, 20),
            20,
        ),
    ):
        pictures.save_grid(grid, report.picture(name, title, caption), columns=columns)
    pictures.save_curves(
        {"VAE (nats an image)": vae.history, "VAE, 2-d latent (nats an image)": vae2.history, "DCGAN": gan.history},
        report.picture("losses", "Losses", "Running means over 25 steps."),
    )
