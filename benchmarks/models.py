"""Whole models beside ``torch.nn``: training steps with everything in them, and the inference of generators.

Both sides are the same network with the same weights on the same batch, as :mod:`gencore.models` builds it from either
set of layers. The gate compares the gradients of every weight (or the images) with those of the network in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.case import Cost
from benchmarks.machine import measure_peaks
from benchmarks.parity import FLOOR_ROUNDINGS, Verdict
from benchmarks.result import Result, judge, provenance
from benchmarks.runner import Progress, Settings, compare, using_threads
from gencore.losses import bernoulli_nll, elbo_loss, logistic_discriminator, non_saturating_generator
from gencore.models import DCGAN, create_model
from gencore.train import GANTraining, VAETraining

Images = Tensor
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class ModelCase:
    """One model at one batch size.

    Attributes:
        name: for :func:`gencore.create_model`, with ``options``.
        batch: images a step.
        quick: belongs to the ``--quick`` selection.
    """

    name: str
    batch: int
    quick: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"batch {self.batch}"


MODELS = (
    ModelCase("vae_32", 64, quick=True),
    ModelCase("vae_64", 64),
    ModelCase("dcgan_32", 64),
    ModelCase("dcgan_64", 64),
)
MODES = ("training step", "inference")


def run_models(
    names: Sequence[str] | None = None,
    *,
    cases: Sequence[ModelCase] = MODELS,
    settings: Settings | None = None,
    threads: int | None = None,
    progress: Progress = lambda text: None,
) -> list[Result]:
    """Rows of the models called ``names`` (all if None): each of our layouts beside each peer, in turn.

    Args:
        cases: what there is to choose from.

    The others are those of :func:`benchmarks.run`.

    Raises:
        ValueError: there is no such model among the cases.
    """
    known = {case.name: case for case in cases}
    if unknown := sorted(set(names or ()) - set(known)):
        raise ValueError(f"there is no benchmark of model {', '.join(unknown)}; there are {', '.join(known)}")
    settings = settings or Settings()
    results: list[Result] = []
    with using_threads(threads):
        peaks = measure_peaks(settings.device)
        for case in cases:
            if (names is None or case.name in names) and (case.quick or not settings.quick):
                for mode in [m for m in MODES if settings.modes is None or m in settings.modes]:
                    progress(f"{case.name}  {case.label}  {mode}")
                    torch.compiler.reset()
                    results += _run_case(case, mode, settings)
        peaks = peaks.best_of(measure_peaks(settings.device))
    return [judge(result, peaks) for result in results]


def _run_case(case: ModelCase, mode: str, settings: Settings) -> Iterator[Result]:
    plain = create_model(case.name, layers="torch", **case.options).to(settings.device)
    own = create_model(case.name, **case.options).to(settings.device)
    own.load_state_dict(plain.state_dict())
    config = plain.config
    shape = (case.batch, config.channels, config.resolution, config.resolution)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(settings.device) * 2 - 1
    verdict = judge_parity(own, plain, images, mode)
    base = Result(
        kind="model",
        op=case.name,
        problem=case.label,
        mode=mode,
        dtype="float32",
        layout="",
        device=settings.device,
        impl="auto",
        peer="",
        error=verdict.error,
        allowed=verdict.allowed,
        **provenance(torch.get_num_threads()),
    )
    if not verdict.passed:
        yield replace(base, status=f"wrong: {verdict}")
        return
    cost = _least_cost(plain, images, mode)
    layouts = settings.layouts or tuple(_FORMATS)
    ours = {layout: _call(own, images, mode, layout) for layout in layouts}
    peers = {
        "eager" if layout == "contiguous" else f"eager, {layout}": _call(plain, images, mode, layout)
        for layout in _FORMATS
    }
    if settings.compiled:
        peers["compile, channels_last"] = _call(plain, images, mode, "channels_last", compiled=True)
    for row in compare(base, ours, peers, cost, settings):
        yield replace(row, layout=row.impl, impl="auto")


def _call(model: Any, images: Images, mode: str, layout: str, *, compiled: bool = False) -> Callable[[], Any]:
    """One step or one inference of a copy of ``model``, in ``layout``."""
    model = copy.deepcopy(model).to(memory_format=_FORMATS[layout])
    images = images.contiguous(memory_format=_FORMATS[layout])
    if compiled:
        for part in model.children():
            part.compile(dynamic=False)
    if mode == "training step":
        training = GANTraining(model) if isinstance(model, DCGAN) else VAETraining(model)
        return lambda: training.step(images)
    model.eval()
    latent = model.sample_latent(len(images), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def infer() -> Tensor:
        return generate(model, latent)

    return infer


def generate(model: Any, latent: Tensor) -> Images:
    """Images from latent codes."""
    return model(latent) if isinstance(model, DCGAN) else model.decode(latent)


def judge_parity(own: nn.Module, plain: nn.Module, images: Images, mode: str) -> Verdict:
    """Ours against the float64 twin, at most twice as far off as ``torch.nn``: the worst of all weights' gradients.

    The distance is that of the 2-norm, since single elements of a deep network's gradient hang on roundings.
    """
    values = _gradients if mode == "training step" else _samples
    oracle = values(copy.deepcopy(plain).double(), images.double())
    errors = []
    for model in (own, plain):
        found = values(copy.deepcopy(model), images)
        errors.append({name: _distance(found[name], exact) for name, exact in oracle.items()})
    ours, torchs = errors
    floor = 16 * FLOOR_ROUNDINGS * torch.finfo(images.dtype).eps
    allowed = max(2 * max(torchs.values()), floor)
    worst = max(ours, key=lambda name: ours[name])
    return Verdict(ours[worst] <= allowed, ours[worst], allowed, worst)


def _gradients(model: Any, images: Images) -> dict[str, Tensor]:
    model.train()
    if isinstance(model, DCGAN):
        fake = model(_latent(model, images))
        real_logits, fake_logits = model.discriminator(images), model.discriminator(fake)
        loss = logistic_discriminator(real_logits, fake_logits) + non_saturating_generator(fake_logits)
    else:
        # With the code at its mean: the two sides draw their noise from different generators.
        logits, kl = model.eval()((images + 1) / 2)
        loss = elbo_loss(bernoulli_nll(logits, (images + 1) / 2), kl)
    names, weights = zip(*model.named_parameters(), strict=True)
    return {f"gradient of {n}": g for n, g in zip(names, torch.autograd.grad(loss, weights), strict=True)}


@torch.no_grad()
def _samples(model: Any, images: Images) -> dict[str, Tensor]:
    return {"images": generate(model.eval(), _latent(model, images))}


def _latent(model: Any, images: Images) -> Tensor:
    latent = copy.deepcopy(model).float().sample_latent(len(images), generator=torch.Generator().manual_seed(0))
    return latent.to(images.dtype)


def _distance(value: Tensor, exact: Tensor) -> float:
    if value.shape != exact.shape or not bool(torch.isfinite(value).all()):
        return float("inf")
    return ((value.double() - exact).norm() / exact.norm().clamp_min(1e-12)).item()


def _least_cost(plain: nn.Module, images: Images, mode: str) -> Cost:
    """Operations of all convolutions and matrix products; bytes of the images and the weights, once each."""
    call = _call(plain, images, mode, "contiguous")
    with FlopCounterMode(display=False) as counter:
        call()
    weights = sum(p.numel() * p.element_size() for p in plain.parameters())
    return Cost(float(counter.get_total_flops()), float(images.nbytes + weights))
