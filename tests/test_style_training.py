"""Training ProGANs and StyleGANs: penalties against closed forms, lazy steps, averages, growth, and whole steps."""

import io
import math

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import gencore
from gencore import losses
from gencore.train import (
    EMA,
    Growth,
    ProGANTraining,
    StyleGANTraining,
    fit,
    lazy_adam,
    load_checkpoint,
    save_checkpoint,
)
from gencore.train.growth import match

QUIET = Console(file=io.StringIO())


def images(count=32, size=16):
    """Bright squares on grey, at random places."""
    generator = torch.Generator().manual_seed(0)
    x = torch.full((count, 1, size, size), -0.5)
    for i, (row, column) in enumerate(torch.randint(0, size // 2, (count, 2), generator=generator).tolist()):
        x[i, 0, row : row + size // 2, column : column + size // 2] = 0.7
    return x


def model(name, seed=0, **options):
    torch.manual_seed(seed)
    styled = {} if name == "progan_256" else {"style": 16, "mapping_layers": 2}
    size = {"resolution": 16, "channels": 1, "latent": 16, "channel_budget": 256, "max_channels": 16}
    return gencore.create_model(name, **size, **styled, **options)


# --- penalties -------------------------------------------------------------------------------------------------------


def test_r1_of_a_linear_discriminator():
    weight = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    real = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = losses.r1_penalty(lambda x: (x * weight).sum([1, 2, 3]), real)
    torch.testing.assert_close(penalty, weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * weight)
    assert real.grad is None


def test_r1_of_a_quadratic_discriminator():
    real = torch.randn(5, 7, dtype=torch.float64)
    penalty = losses.r1_penalty(lambda x: x.square().sum(1) / 2, real)
    torch.testing.assert_close(penalty, real.square().sum(1).mean())  # the gradient is x itself


def test_path_lengths_of_a_linear_generator():
    """Of images y = A w in every layer, the squared length is that of A^T noise; its mean is ||A||^2 / pixels."""
    matrix = torch.randn(2 * 6 * 6, 5, dtype=torch.float64)
    styles = torch.randn(400, 3, 5, dtype=torch.float64, requires_grad=True)
    lengths = losses.path_lengths((styles.mean(1) @ matrix.T).view(400, 2, 6, 6), styles)
    wanted = matrix.square().sum() / 36 / 9  # the mean over three layers gives each a third of the gradient
    assert lengths.shape == (400,)
    assert abs(lengths.square().mean() / wanted - 1) < 0.15
    with pytest.raises(ValueError, match=r"styles \[N, layers, W\] of one N, got \(2, 1, 4, 4\) and \(2, 5\)"):
        losses.path_lengths(torch.zeros(2, 1, 4, 4), torch.zeros(2, 5))


def test_path_length_penalty():
    lengths = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    penalty, mean = losses.path_length_penalty(lengths, torch.tensor(1.0, dtype=torch.float64), decay=0.5)
    assert mean == 1.5
    assert not mean.requires_grad
    assert penalty == (0.25 + 2.25) / 2
    penalty.backward()
    assert lengths.grad.tolist() == [-0.5, 1.5]


def test_drift():
    assert losses.drift_penalty(torch.tensor([1.0, -3.0])) == 5


# --- what trains -----------------------------------------------------------------------------------------------------


def test_lazy_adam_corrections():
    weights = [nn.Parameter(torch.zeros(1))]
    group = lazy_adam(weights, learning_rate=0.002, betas=(0.5, 0.99), every=16).param_groups[0]
    assert group["lr"] == pytest.approx(0.002 * 16 / 17)
    assert group["betas"] == pytest.approx((0.5 ** (16 / 17), 0.99 ** (16 / 17)))
    group = lazy_adam(weights, learning_rate=0.002, every=0).param_groups[0]
    assert (group["lr"], group["betas"]) == (0.002, (0.0, 0.99))
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        lazy_adam(weights, learning_rate=0.1, every=-1)


def test_lazy_adam_moves_as_far():
    """16 steps and one of a regulariser forget as much of the past, and go as far, as 16 without."""
    start = torch.zeros(1, dtype=torch.float64)
    plain, lazy = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    a = lazy_adam([plain], learning_rate=0.01)
    b = lazy_adam([lazy], learning_rate=0.01, every=16)
    for step in range(160):
        for weight, optimizer, repeat in ((plain, a, 1), (lazy, b, 2 if step % 16 == 0 else 1)):
            for _ in range(repeat):
                weight.grad = torch.ones_like(weight)
                optimizer.step()
    assert lazy.item() == pytest.approx(plain.item(), rel=1e-9)
    decays = [optimizer.param_groups[0]["betas"][1] ** steps for optimizer, steps in ((a, 160), (b, 170))]
    assert decays[0] == pytest.approx(decays[1])


def test_average_has_its_half_life():
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    average = EMA(net, half_life=1000, ramp_up=None)
    nn.init.ones_(net.weight)
    for seen in range(10, 1001, 10):
        average.update(net, batch=10, seen=seen)
    assert average.module.weight.item() == pytest.approx(0.5, abs=1e-5)
    assert not average.module.weight.requires_grad


def test_average_ramps_up_and_copies_buffers():
    net = nn.BatchNorm1d(2)
    average = EMA(net, half_life=10_000, ramp_up=0.05)
    assert average.beta(32, seen=32) == pytest.approx(0.5**20)  # half-life 1.6 images
    assert average.beta(32, seen=200_000) == average.beta(32, seen=10**9) == 0.5 ** (32 / 10_000)
    net.running_mean.fill_(3)
    average.update(net, batch=32, seen=10**9)
    assert average.module.running_mean.tolist() == [3, 3]
    assert not average.module.training
    with pytest.raises(ValueError, match=r"must be positive, got 0 and 0\.05"):
        EMA(net, half_life=0)


def test_growth_plan():
    growth = Growth(32, stable=100, fade=50)
    stages = {seen: growth.at(seen) for seen in (0, 99, 100, 125, 149, 150, 249, 250, 300, 400, 425, 450, 10**9)}
    assert stages == {
        0: (4, 1.0),
        99: (4, 1.0),
        100: (8, 0.0),
        125: (8, 0.5),
        149: (8, 0.98),
        150: (8, 1.0),
        249: (8, 1.0),
        250: (16, 0.0),
        300: (16, 1.0),
        400: (32, 0.0),
        425: (32, 0.5),
        450: (32, 1.0),
        10**9: (32, 1.0),
    }
    assert Growth(32, start=8, stable=1, fade=0).at(1) == (16, 1.0)
    for options, message in (
        ({"top": 48}, "power of two from 4 to 1024, got 48"),
        ({"top": 16, "start": 32}, r"start must be a power of two in 4\.\.16, got 32"),
        ({"top": 16, "stable": -1}, "must not be negative, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            Growth(**options)


def test_real_images_match_the_stage():
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(match(x, 16, 1.0), x)
    half = F.avg_pool2d(x, 2)
    torch.testing.assert_close(match(x, 8, 1.0), half)
    torch.testing.assert_close(match(x, 16, 0.0), half.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(match(x, 16, 0.25), 0.25 * x + 0.75 * match(x, 16, 0.0))


# --- whole steps -----------------------------------------------------------------------------------------------------


def progan_training(seed=0, **options):
    growth = Growth(16, stable=32, fade=32)
    return ProGANTraining(model("progan_256", seed), growth=growth, seed=seed, **options)


def stylegan_training(seed=0, **options):
    growth = Growth(16, start=8, stable=32, fade=32)
    return StyleGANTraining(model("stylegan_256", seed), growth=growth, r1_every=0, path_weight=0, seed=seed, **options)


def stylegan2_training(seed=0, **options):
    return StyleGANTraining(model("stylegan2_256", seed), gamma=1.0, r1_every=3, path_every=2, seed=seed, **options)


TRAININGS = [progan_training, stylegan_training, stylegan2_training]


@pytest.mark.parametrize("make", TRAININGS)
def test_every_weight_trains(make):
    training = make()
    before = {key: p.clone() for key, p in training.model.named_parameters()}
    fit(training, images(), steps=24, batch_size=8, console=QUIET)
    for key, parameter in training.model.named_parameters():
        if make is stylegan_training and "rgb.4" in key:
            assert torch.equal(parameter, before[key])  # it starts at 8x8
        else:
            assert not torch.equal(parameter, before[key]), key
        assert parameter.requires_grad, key
    assert training.seen == 24 * 8
    assert training.sample(training.model.sample_latent(3)).shape == (3, 1, 16, 16)
    assert all(math.isfinite(value) for entry in training.history for value in entry.values())


def test_progan_grows_while_it_trains():
    training = progan_training()
    fit(training, images(), steps=24, batch_size=8, console=QUIET)
    sizes = [entry["resolution"] for entry in training.history]
    assert sizes == [4.0] * 4 + [8.0] * 8 + [16.0] * 12


@pytest.mark.parametrize("make", [progan_training, stylegan_training])
def test_the_average_grows_along(make):
    training = make()
    z = training.model.sample_latent(2)
    for _ in range(7):
        training.step(images()[:8])
        network = training.model.discriminator
        assert training.sample(z).shape == (2, 1, network.resolution, network.resolution)
        assert [m.now() for m in training.averaged.module.modules() if hasattr(m, "now")] == [network.now()]
    assert network.fading


def test_growth_keeps_the_optimizer_state():
    """Moments and step counts of the old layers go on over a growth; those of the new ones begin with it."""
    training = progan_training()
    old = training.model.generator.blocks["4"].conv.weight
    new = training.model.generator.blocks["8"].conv0.weight
    for _ in range(4):
        training.step(images()[:8])
    state = training.optimizer_g.state
    moment = state[old]["exp_avg_sq"].clone()
    assert new not in state
    training.step(images()[:8])  # the first one at 8x8, and alpha 0
    assert state[old]["step"] == 5
    assert state[new]["step"] == 1
    grown = state[old]["exp_avg_sq"]
    assert (grown >= 0.99 * moment - 1e-12).all()  # the average of before, and more


@pytest.mark.parametrize("make", [progan_training, stylegan2_training])
def test_the_mean_image_is_learned(make):
    training = make(learning_rate=3e-3)
    training.growth = None
    z = training.model.sample_latent(64, generator=torch.Generator().manual_seed(0))

    def distance():
        return (training.model(z).mean(0) - images().mean(0)).square().mean().item()

    before = distance()
    fit(training, images(), steps=60, batch_size=8, console=QUIET)
    assert distance() < 0.5 * before


def test_lazy_steps_come_when_they_should():
    training = stylegan2_training()
    steps = {"g": [], "d": []}
    for key, optimizer in (("g", training.optimizer_g), ("d", training.optimizer_d)):
        original = optimizer.step
        optimizer.step = lambda key=key, original=original: (steps[key].append(training.steps), original())[1]
    for _ in range(6):
        training.step(images()[:8])
    assert steps["d"] == [0, 0, 1, 2, 3, 3, 4, 5]
    assert steps["g"] == [0, 0, 1, 2, 2, 3, 4, 4, 5]
    assert training.optimizer_d.param_groups[0]["lr"] == pytest.approx(2.5e-3 * 3 / 4)
    assert training.optimizer_g.param_groups[0]["lr"] == pytest.approx(2.5e-3 * 2 / 3)
    assert training.path_mean > 0


def test_there_is_no_correction_without_a_regulariser():
    training = StyleGANTraining(model("stylegan2_256"), gamma=0.0, path_weight=0.0)
    for optimizer in (training.optimizer_d, training.optimizer_g):
        assert optimizer.param_groups[0]["lr"] == 2.5e-3
        assert optimizer.param_groups[0]["betas"] == (0.0, 0.99)
    assert training.step(images()[:8])["r1"] == 0


@pytest.mark.parametrize("make", TRAININGS)
def test_the_generator_step_leaves_the_discriminator_alone(make):
    training = make()
    weights = list(training.model.discriminator.parameters())
    before, gradients = [p.clone() for p in weights], []

    def keep_gradients():
        gradients[:] = [None if p.grad is None else p.grad.clone() for p in weights]

    training.optimizer_d.step = keep_gradients
    training.adversarial_step(images()) if make is stylegan2_training else training.step(images()[:8])
    assert all(map(torch.equal, weights, before))
    for parameter, gradient in zip(weights, gradients, strict=True):
        assert gradient is None or torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("make", TRAININGS)
def test_interrupted_training_goes_on_as_if_it_had_not_been(make, tmp_path):
    whole = make()
    fit(whole, images(), steps=9, batch_size=8, console=QUIET)
    path = tmp_path / "checkpoint.pt"
    first = make()
    fit(first, images(), steps=5, batch_size=8, console=QUIET)
    save_checkpoint(first, path)
    resumed = make(seed=1)
    load_checkpoint(resumed, path)
    fit(resumed, images(), steps=9, batch_size=8, console=QUIET)
    assert resumed.history == whole.history
    for module, other in ((resumed.model, whole.model), (resumed.averaged.module, whole.averaged.module)):
        for (key, a), b in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), key


@pytest.mark.parametrize("name", ["progan_256", "stylegan_256", "stylegan2_256"])
def test_a_checkpoint_of_another_resolution_is_not_loaded_in_part(name, tmp_path):
    training = ProGANTraining if name == "progan_256" else StyleGANTraining
    torch.manual_seed(1)
    sizes = {"channels": 1, "latent": 16, "channel_budget": 256, "max_channels": 16}
    save_checkpoint(training(gencore.create_model(name, resolution=32, **sizes)), tmp_path / "32.pt")
    small = training(gencore.create_model(name, resolution=16, **sizes))
    before = {k: v.clone() for k, v in small.model.state_dict().items()}
    with pytest.raises(
        RuntimeError, match=r"does not fit a training of a Style\w+|ProGAN of \w+\(resolution=16"
    ) as caught:
        load_checkpoint(small, tmp_path / "32.pt")
    assert "model: discriminator.from_rgb." in str(caught.value)
    assert "averaged: " in str(caught.value)
    assert "32.conv0.weight (8, 16, 3, 3) is left over" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in small.model.state_dict().items())


def test_growth_must_fit_the_model():
    with pytest.raises(ValueError, match="must end at the model's resolution 16, got 32"):
        ProGANTraining(model("progan_256"), growth=Growth(32))
    with pytest.raises(ValueError, match="a StyleGAN2 does not grow"):
        StyleGANTraining(model("stylegan2_256"), growth=Growth(16))


@pytest.mark.parametrize("make", TRAININGS)
@pytest.mark.parametrize("size", [24, 32])
def test_images_must_have_the_models_resolution(make, size):
    training = make()
    with pytest.raises(RuntimeError, match=rf"images must have shape \[N, C, 16, 16\], got \(8, 1, {size}, {size}\)"):
        training.step(torch.randn(8, 1, size, size))
    with pytest.raises(RuntimeError):
        training.step(torch.randn(7, 3, 16, 16))  # of other channels
    assert training.seen == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixing": 2.0}, "mixing must be a probability"),
        ({"mixing": math.nan}, "mixing must be a probability"),
        ({"r1_every": None}, "r1_every must be a whole number of at least 0, got None"),
        ({"path_shrink": 0}, "path_shrink must be a whole number of at least 1, got 0"),
        ({"ema_half_life": math.nan}, "half_life and ramp_up must be positive"),
    ],
)
def test_options_that_could_not_work(options, message):
    with pytest.raises(ValueError, match=message):
        StyleGANTraining(model("stylegan2_256"), **options)


def test_an_average_of_nothing_seen_is_the_model():
    assert EMA(nn.Linear(1, 1)).beta(4, seen=0) == 0
