"""Whole models beside ``torch.nn``: training steps with everything in them, and the inference of generators.

Both sides are the same network with the same weights on the same batch, as :mod:`gencore.models` builds it from either
set of layers. The gate compares the gradients of every weight (or the images) with those of the network in float64.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import engines
from benchmarks.case import Cost
from benchmarks.machine import measure_peaks
from benchmarks.parity import FLOOR_ROUNDINGS, Verdict, rounding, using_dtype
from benchmarks.plain_stylegan2 import FORMULATIONS, plain_stylegan2
from benchmarks.result import Result, judge, provenance
from benchmarks.runner import Progress, Settings, compare, using_threads
from gencore import freeze
from gencore.losses import bernoulli_nll, elbo_loss, logistic_discriminator, non_saturating_generator, r1_penalty
from gencore.models import DCGAN, SNGAN, StyleGAN2, create_model
from gencore.train import GANTraining, StyleGANTraining, VAETraining

Images = Tensor
MODES = ("training step", "R1 step", "path length step", "inference")
#: How many batches the gate looks at before it refuses a model.
BATCHES = 8
#: Models that are trained as pairs of a generator and a discriminator on images and noise alone.
GANS = (DCGAN, SNGAN)
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class ModelCase:
    """One model at one batch size.

    Attributes:
        name: for :func:`gencore.create_model`, with ``options``.
        batch: images a step.
        quick: belongs to the ``--quick`` selection.
        modes: what is timed.
        rounds: at least so many, where the settings' are too many for seconds a call.
    """

    name: str
    batch: int
    quick: bool = False
    modes: tuple[str, ...] = ("training step", "inference")
    rounds: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"batch {self.batch}"


MODELS = (
    ModelCase("vae_32", 64, quick=True),
    ModelCase("vae_64", 64),
    ModelCase("dcgan_32", 64),
    ModelCase("dcgan_64", 64),
    ModelCase("dcgan_64", 1, modes=("inference",)),
    ModelCase("sngan_32", 64, modes=("training step",), rounds=5),
    ModelCase("sagan_128", 8, modes=("inference",), rounds=5),
    ModelCase("biggan_128", 8, modes=("inference",), rounds=5),
    ModelCase("stylegan2_256", 1, modes=("inference",)),
    ModelCase("stylegan2_256", 4, modes=("inference",), rounds=5),
    # Of every 16 steps all are training steps, four have a path length step too, and one an R1 step.
    ModelCase("stylegan2_64", 4, modes=("training step", "R1 step", "path length step"), rounds=5),
)


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
    if not set(settings.dtypes) <= {"float32", "tf32"}:
        raise ValueError(f"models are benchmarked in float32 and tf32, not in {', '.join(settings.dtypes)}")
    with using_threads(threads):
        peaks = measure_peaks(settings.device)
        for case, dtype in itertools.product(cases, settings.dtypes):
            if (names is None or case.name in names) and (case.quick or not settings.quick):
                for mode in [m for m in case.modes if settings.modes is None or m in settings.modes]:
                    progress(f"{case.name}  {case.label}  {mode}  {dtype}")
                    torch.compiler.reset()
                    with using_dtype(dtype):
                        results += [replace(row, dtype=dtype) for row in _run_case(case, mode, settings)]
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
    layouts = settings.layouts or tuple(_FORMATS)
    ours = {layout: _call(own, images, mode, layout) for layout in layouts}
    written = _as_written(plain)
    cost = _least_cost(next(iter(written.values())), images, mode)
    peers = {
        f"eager{how}" if layout == "contiguous" else f"eager{how}, {layout}": _call(model, images, mode, layout)
        for how, model in written.items()
        for layout in _FORMATS
    }
    if settings.compiled:
        # A compiler may do better with either layout; of training steps, which take minutes to compile, one is tried.
        for how, model in written.items():
            if mode == "inference":
                peers[f"compile{how}"] = _call(model, images, mode, "contiguous", compiled=True)
            peers[f"compile{how}, channels_last"] = _call(model, images, mode, "channels_last", compiled=True)
        peers |= _engines(list(written.values())[-1], images, mode)
    if case.rounds is not None:
        settings = replace(settings, rounds=min(case.rounds, settings.rounds))
    for row in compare(base, ours, peers, cost, settings):
        yield replace(row, layout=row.impl, impl="auto")


def _call(model: Any, images: Images, mode: str, layout: str, *, compiled: bool = False) -> Callable[[], Any]:
    """One step or one inference of a copy of ``model``, in ``layout``."""
    model = copy.deepcopy(model).to(memory_format=_FORMATS[layout])
    images = images.contiguous(memory_format=_FORMATS[layout])
    if compiled:
        for part in model.children():
            part.compile(dynamic=False)
    if isinstance(model, StyleGAN2) and mode != "inference":
        style_training = StyleGANTraining(model.train())
        match mode:
            case "R1 step":
                return lambda: style_training.r1_step(images)
            case "path length step":
                return lambda: style_training.path_step(len(images) // style_training.path_shrink)
        return lambda: style_training.adversarial_step(images)
    if mode == "training step":
        training = GANTraining(model) if isinstance(model, GANS) else VAETraining(model)
        return lambda: training.step(images)
    freeze(model)
    latent = model.sample_latent(len(images), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def infer() -> Tensor:
        return generate(model, latent)

    return infer


def _engines(plain: Any, images: Images, mode: str) -> dict[str, Callable[[], Tensor]]:
    """Inference on the engines that are installed, but for those that compute something else."""
    if mode != "inference" or images.device.type != "cpu":
        return {}
    model = _Generate(copy.deepcopy(plain).eval())
    latent = plain.sample_latent(len(images), generator=torch.Generator().manual_seed(0))
    exact = _samples(copy.deepcopy(plain).double(), latent.double())["images"]
    calls = engines.inference_calls(model, latent)
    return {name: call for name, call in calls.items() if _distance(call(), exact) < 1e-4}


class _Generate(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent: Tensor) -> Images:
        return generate(self.model, latent)


def generate(model: Any, latent: Tensor) -> Images:
    """Images from latent codes."""
    if isinstance(model, StyleGAN2):
        return model(latent, noise="const")
    if classes := getattr(model.config, "classes", 0):
        return model(latent, torch.arange(len(latent), device=latent.device) % classes)
    return model(latent) if isinstance(model, GANS) else model.decode(latent)


def _as_written(plain: Any) -> dict[str, Any]:
    """The plain network as people write it in PyTorch: by what distinguishes each way of writing it."""
    if isinstance(plain, StyleGAN2):
        return {f", {how}": plain_stylegan2(plain, how) for how in FORMULATIONS}
    return {"": plain}


def judge_parity(own: Any, plain: nn.Module, images: Images, mode: str) -> Verdict:
    """Ours against the float64 twin, at most twice as far off as ``torch.nn``: the worst of all weights' gradients.

    The distance is that of the 2-norm, since single elements of a deep network's gradient hang on roundings. So does
    more: among millions of rectified units some lie within a rounding of zero, and such a unit takes part in the
    gradient or not by the last bit of a sum, in our layers and in PyTorch's. On another batch these are other units,
    while a kernel that is wrong is wrong on every batch: the gate asks for one batch without such luck.
    """
    plain = next(iter(_as_written(plain).values()))
    for attempt in range(BATCHES):
        latent = own.sample_latent(len(images), generator=torch.Generator().manual_seed(attempt))
        verdict = _judge_batch(own, plain, images * (1 - attempt / 64), latent, mode)
        if verdict.passed:
            break
    return verdict


def _judge_batch(own: nn.Module, plain: nn.Module, images: Images, latent: Tensor, mode: str) -> Verdict:
    oracle = _values(copy.deepcopy(plain).double(), images.double(), latent.double(), mode)
    errors = []
    for model in (own, plain):
        found = _values(copy.deepcopy(model), images, latent, mode)
        errors.append({name: _distance(found[name], exact) for name, exact in oracle.items()})
    ours, torchs = errors
    floor = 16 * FLOOR_ROUNDINGS * rounding(images.dtype)
    allowed = max(2 * max(torchs.values()), floor)
    worst = max(ours, key=lambda name: ours[name])
    return Verdict(ours[worst] <= allowed, ours[worst], allowed, worst)


def _values(model: Any, images: Images, latent: Tensor, mode: str) -> dict[str, Tensor]:
    if mode == "inference":
        return _samples(model, latent)
    names, weights = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(_loss(model, images, latent, mode), weights, allow_unused=True)
    # No path leads from R1 to a bias under a LeakyReLU: PyTorch may walk it all the same, and get zeros.
    found = [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True)]
    return {f"gradient of {n}": g for n, g in zip(names, found, strict=True)}


def _loss(model: Any, images: Images, latent: Tensor, mode: str) -> Tensor:
    """Without noise, or with the same noise: the two sides draw theirs from different generators."""
    model.train()
    if isinstance(model, StyleGAN2):
        if mode == "R1 step":
            return r1_penalty(model.discriminator, images)
        styles = model.generator.mapping(latent)
        fake = model.generator.synthesis(styles, "const")
        if mode == "path length step":
            noise = torch.randn(fake.shape, generator=torch.Generator().manual_seed(1)).to(fake)
            (gradient,) = torch.autograd.grad((fake * noise).sum(), styles, create_graph=True)
            return gradient.square().sum()
    elif isinstance(model, GANS):
        fake = model(latent)
    else:
        logits, kl = model.eval()((images + 1) / 2)  # z at its mean
        return elbo_loss(bernoulli_nll(logits, (images + 1) / 2), kl)
    real_logits, fake_logits = model.discriminator(images), model.discriminator(fake)
    return logistic_discriminator(real_logits, fake_logits) + non_saturating_generator(fake_logits)


@torch.no_grad()
def _samples(model: Any, latent: Tensor) -> dict[str, Tensor]:
    return {"images": generate(model.eval(), latent)}


def _distance(value: Tensor, exact: Tensor) -> float:
    if value.shape != exact.shape or not bool(torch.isfinite(value).all()):
        return float("inf")
    return ((value.double() - exact).norm() / exact.norm().clamp_min(1e-12)).item()


def _least_cost(plain: nn.Module, images: Images, mode: str) -> Cost:
    """Operations of all convolutions and matrix products; bytes of the images and the weights, once each."""
    call = _call(plain, images, mode, "contiguous")
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _EverythingTogether()
    with counter:
        call()
    weights = sum(p.numel() * p.element_size() for p in plain.parameters())
    return Cost(float(counter.get_total_flops()), float(images.nbytes + weights))


class _EverythingTogether(nullcontext[None]):
    """Instead of torch's tracker of modules, whose hooks do not stand gradients of images that enter a module."""

    parents = frozenset({"Global"})
