"""Training: steps learn, checkpoints resume exactly, and what goes wrong is said."""

import io

import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

import gencore
from gencore import losses
from gencore.train import GANTraining, RestorationTraining, VAETraining, fit, load_checkpoint, save_checkpoint
from gencore.train.restoration import gaussian_noise

QUIET = Console(file=io.StringIO())


def images(count=64):
    """Bright squares on black, at random places: something to learn in a few steps."""
    generator = torch.Generator().manual_seed(0)
    x = torch.full((count, 1, 32, 32), -1.0)
    for i, (row, column) in enumerate(torch.randint(4, 20, (count, 2), generator=generator).tolist()):
        x[i, 0, row : row + 8, column : column + 8] = 1
    return x


def vae_training(seed=0):
    torch.manual_seed(seed)
    return VAETraining(gencore.create_model("vae_32", width=8, hidden=32), learning_rate=3e-3, seed=seed)


def gan_training(seed=0, **options):
    torch.manual_seed(seed)
    return GANTraining(gencore.create_model("dcgan_32", channels=1, width=8, latent=16), seed=seed, **options)


def test_vae_learns():
    training = vae_training()
    before = training.evaluate(images())
    fit(training, images(), steps=120, batch_size=16, console=QUIET)
    after = training.evaluate(images())
    assert len(training.history) == 120
    assert after["loss"] < 0.5 * before["loss"]
    assert after["kl"] > before["kl"]  # the latent code is in use
    assert after["loss"] == pytest.approx(after["reconstruction"] + after["kl"], rel=1e-5)


def test_terms_of_a_vae():
    """Reconstruction alone lets the codes drift from the prior; the divergence alone makes them the prior."""

    def trained(**weights):
        torch.manual_seed(0)
        training = VAETraining(gencore.create_model("vae_32", width=8, hidden=32), learning_rate=3e-3, **weights)
        fit(training, images(), steps=60, batch_size=16, console=QUIET)
        return training.evaluate(images())

    both, free, prior = trained(), trained(beta=0.0), trained(reconstruction=0.0)
    assert free["kl"] > 2 * both["kl"] > 0
    assert prior["kl"] < 0.05 * both["kl"]
    assert prior["reconstruction"] > 2 * both["reconstruction"]
    assert free["loss"] == pytest.approx(free["reconstruction"])
    assert prior["loss"] == pytest.approx(prior["kl"])


@pytest.mark.parametrize("loss", ["non_saturating", "hinge"])
def test_gan_step(loss):
    training = gan_training(loss=loss)
    before = {name: p.clone() for name, p in training.model.named_parameters()}
    fit(training, images(), steps=30, batch_size=16, console=QUIET)
    for name, parameter in training.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert parameter.requires_grad, name
    assert max(entry["accuracy_d"] for entry in training.history) > 0.9
    assert all(entry["diversity"] > 0 for entry in training.history)


def test_generator_step_leaves_the_discriminator_alone():
    training = gan_training()
    training.optimizer_d = torch.optim.SGD(training.model.discriminator.parameters(), lr=0.0)
    before = [p.clone() for p in training.model.discriminator.parameters()]
    training.step(images(16))
    assert all(torch.equal(p, b) for p, b in zip(training.model.discriminator.parameters(), before, strict=True))
    # And the gradient that is left over is that of the discriminator's own loss alone.
    fresh = gan_training()
    fake = fresh.model(fresh.model.sample_latent(16, generator=fresh.generator)).detach()
    loss = fresh.loss.discriminator(fresh.model.discriminator(images(16)), fresh.model.discriminator(fake))
    wanted = torch.autograd.grad(loss, list(fresh.model.discriminator.parameters()))
    for parameter, gradient in zip(training.model.discriminator.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_average_follows_the_generator():
    training = gan_training(ema=0.5)
    first = training.model.generator.to_image.weight.detach().clone()
    expected = None
    for _ in range(3):
        training.step(images(16))
        now = training.model.generator.to_image.weight.detach()
        # The average starts at the weights after the first step.
        expected = now.clone() if expected is None else torch.lerp(expected, now, 0.5)
    torch.testing.assert_close(training.averaged.module.to_image.weight, expected)
    assert not torch.equal(expected, first)
    z = training.model.sample_latent(3)
    assert torch.equal(training.sample(z), training.sample(z))


@pytest.mark.parametrize("make", [vae_training, gan_training])
def test_interrupted_training_goes_on_as_if_it_had_not_been(make, tmp_path):
    whole = make()
    fit(whole, images(), steps=7, batch_size=16, console=QUIET)

    path = tmp_path / "deep" / "checkpoint.pt"
    fit(make(), images(), steps=3, batch_size=16, console=QUIET, checkpoint=path)
    resumed = make(seed=1)  # other weights and other noise: everything must come out of the file
    fit(resumed, images(), steps=7, batch_size=16, console=QUIET, checkpoint=path)

    assert resumed.history == whole.history
    for (name, a), b in zip(resumed.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    again = make(seed=2)
    load_checkpoint(again, path)
    assert len(again.history) == 7
    assert not path.with_name("checkpoint.pt.partial").exists()


def test_checkpoint_of_another_kind(tmp_path):
    save_checkpoint(vae_training(), tmp_path / "vae.pt")
    with pytest.raises(ValueError, match="holds a VAETraining, wanted a GANTraining"):
        load_checkpoint(gan_training(), tmp_path / "vae.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a None"):
        load_checkpoint(gan_training(), tmp_path / "list.pt")


@pytest.mark.parametrize("kind", ["vae", "gan", "restoration"])
def test_a_checkpoint_that_does_not_fit_is_not_loaded_in_part(kind, tmp_path):
    def make(width):
        if kind == "vae":
            return VAETraining(gencore.create_model("vae_32", width=width, hidden=32))
        if kind == "gan":
            return GANTraining(gencore.create_model("dcgan_32", width=width, latent=16))
        return RestorationTraining(gencore.create_model("red_net_10", width=width), gaussian_noise(25))

    save_checkpoint(make(8), tmp_path / "8.pt")
    training = make(4)
    before = {k: v.clone() for k, v in training.model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"nothing is loaded:\n  model: [\w.]+ must be .*, got \("):
        load_checkpoint(training, tmp_path / "8.pt")
    state = make(4).state_dict()
    del state["history"]
    with pytest.raises(RuntimeError, match="history is missing"):
        training.load_state_dict(state | {"more": 1})
    assert all(torch.equal(v, before[k]) for k, v in training.model.state_dict().items())


class Recorder:
    """Trains nothing and remembers its batches; with classes, where it has some."""

    def __init__(self, num_classes=0):
        self.history, self.seen, self.num_classes = [], [], num_classes
        self.generator = torch.Generator()

    def step(self, batch, *classes):
        assert len(classes) == (self.num_classes > 0)
        self.seen.append(batch.flatten().tolist())
        if classes:
            assert classes[0].tolist() == [x % self.num_classes for x in self.seen[-1]]
        return {"loss": 0.0}


def test_every_image_is_seen_once_an_epoch():
    recorder = Recorder()
    fit(recorder, torch.arange(10.0).view(10, 1, 1, 1), steps=7, batch_size=3, console=QUIET)
    assert [len(batch) for batch in recorder.seen] == [3] * 7
    first, second = ([x for batch in recorder.seen[i : i + 3] for x in batch] for i in (0, 3))
    assert len(set(first)) == len(set(second)) == 9
    assert first != second


def test_time_limit():
    training = vae_training()
    fit(training, images(), steps=10_000, batch_size=16, seconds=0.2, console=QUIET)
    assert 1 <= len(training.history) < 10_000


def test_progress_is_shown():
    output = io.StringIO()
    fit(vae_training(), images(), steps=4, batch_size=16, label="digits", console=Console(file=output, width=160))
    assert "digits" in output.getvalue()
    assert "4/4" in output.getvalue()
    assert "loss" in output.getvalue()


def test_refuses():
    with pytest.raises(ValueError, match=r"batch_size must be in 1\.\.64 .*, got 65"):
        fit(vae_training(), images(), steps=1, batch_size=65, console=QUIET)
    training = vae_training()
    with torch.no_grad():
        next(training.model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss, reconstruction, kl is not finite at step 0"):
        fit(training, images(), steps=1, batch_size=16, console=QUIET)


def test_generator_moves_every_third_step():
    training = gan_training(generator_every=3)
    weight, moved = training.model.generator.to_image.weight, []
    for _ in range(6):
        before = weight.detach().clone()
        training.step(images()[:8])
        moved.append(not torch.equal(before, weight))
    assert moved == [False, False, True, False, False, True]
    with pytest.raises(ValueError, match="generator_every must be at least 1, got 0"):
        gan_training(generator_every=0)


def test_a_discriminator_that_is_too_good_waits():
    """It moves where its accuracy on the batch before was within the limit; that goes on over a checkpoint."""
    training = gan_training(accuracy_limit=0.8, learning_rate=1e-3)
    weight, accuracies, moved = training.model.discriminator.from_image.weight, [0.0], []
    for _ in range(12):
        if accuracies[-1] > 0.8 and all(moved):  # the first time that it has to wait
            state, training = training.state_dict(), gan_training(seed=1, accuracy_limit=0.8, learning_rate=1e-3)
            training.load_state_dict(state)
            weight = training.model.discriminator.from_image.weight
        before = weight.detach().clone()
        accuracies.append(training.step(images()[:16])["accuracy_d"])
        moved.append(not torch.equal(before, weight))
    assert moved == [accuracy <= 0.8 for accuracy in accuracies[:-1]]
    assert set(moved) == {True, False}


def test_conditional_training_regularises_the_generator():
    """BigGAN's recipe; with a great weight, the orthogonal penalty is all that the generator's step sees."""
    torch.manual_seed(0)
    model = gencore.create_model("biggan_32", width=2, channels=1, classes=3)
    with torch.no_grad():
        model.generator.linear.parametrizations.weight.original.mul_(3).add_(0.1)
    options = {"loss": "hinge", "betas": (0.0, 0.999), "learning_rate": 1e-3, "learning_rate_d": 4e-3}
    training = GANTraining(model, **options, orthogonal=1e4)
    assert [g["lr"] for g in training.optimizer_d.param_groups] == [4e-3]

    def penalty():
        return losses.orthogonal_penalty([model.generator.linear.parametrizations.weight.original]).item()

    before = penalty()
    for _ in range(5):
        metrics = training.step(images()[:6], torch.tensor([0, 1, 2, 0, 1, 2]))
    assert penalty() < before
    assert all(abs(v) < float("inf") for v in metrics.values())
    z, y = model.sample_latent(2), torch.tensor([0, 2])
    assert training.sample(z, y).shape == (2, 1, 32, 32)


NUMBERS = torch.arange(10.0).view(10, 1, 1, 1)
THIRDS = torch.arange(10) % 3


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("kind", ["tensors", "dataset", "loader"])
def test_images_keep_their_classes(kind, num_classes):
    """Pairs of tensors, data sets and loaders; a model without classes gets the images alone."""
    recorder, dataset = Recorder(num_classes), TensorDataset(NUMBERS, THIRDS)
    data = {"tensors": (NUMBERS, THIRDS), "dataset": dataset, "loader": DataLoader(dataset, 3, drop_last=True)}[kind]
    fit(recorder, data, steps=7, batch_size=3, console=QUIET)
    assert [len(batch) for batch in recorder.seen] == [3] * 7
    assert len({x for batch in recorder.seen[:3] for x in batch}) == 9


def test_batches_of_a_loader_are_its_own():
    recorder = Recorder()
    fit(recorder, DataLoader(TensorDataset(NUMBERS), 4), steps=4, batch_size=99, console=QUIET)
    assert recorder.seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]
    with pytest.raises(ValueError, match=r"data gave 1 batches and then no more, wanted 3; .* gone through again"):
        fit(Recorder(), iter([NUMBERS]), steps=3, console=QUIET)


def test_data_sets_are_shuffled_like_tensors():
    first, second = Recorder(), Recorder()
    fit(first, NUMBERS, steps=5, batch_size=3, console=QUIET)
    fit(second, TensorDataset(NUMBERS), steps=5, batch_size=3, console=QUIET)
    assert first.seen == second.seen


def projection(**options):
    torch.manual_seed(0)
    width = (8, 8, 8, 8)
    model = gencore.create_model("sngan_32_projection", channels=1, generator=width, discriminator=width, classes=3)
    return GANTraining(model, loss="hinge", **options)


def biggan(name="biggan_32", **options):
    torch.manual_seed(0)
    return GANTraining(gencore.create_model(name, channels=1, classes=3, **options), loss="hinge")


DEEP = {"resolution": 32, "generator": (4, 4, 2, 1), "discriminator": (1, 2, 4, 4), "shared": 6, "attention": 16}


@pytest.mark.parametrize(
    "make",
    [
        projection,
        lambda: biggan(width=2),
        lambda: biggan("biggan_128", width=8, chunk=5, **DEEP),
        lambda: biggan("biggan_deep_128", width=8, latent=5, **DEEP),
    ],
    ids=["sngan", "biggan_32", "biggan", "biggan_deep"],
)
def test_class_conditional_models_train(make):
    training = make()
    before = {name: p.clone() for name, p in training.model.named_parameters()}
    fit(training, (images(), torch.arange(64) % 3), steps=4, batch_size=12, console=QUIET)
    assert training.num_classes == 3
    for name, parameter in training.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    y = torch.tensor([0, 1])
    assert training.sample(training.model.sample_latent(2), y).shape == (2, 1, 32, 32)


def test_classes_are_learned():
    """Class 0 is black and class 1 white: what is drawn of a class comes to look like it."""
    x = torch.cat([torch.full((32, 1, 32, 32), -0.9), torch.full((32, 1, 32, 32), 0.9)])
    torch.manual_seed(0)
    width = (16, 16, 16, 16)
    model = gencore.create_model("sngan_32_projection", channels=1, generator=width, discriminator=width, classes=2)
    training = GANTraining(model, loss="hinge", betas=(0.0, 0.9), learning_rate=1e-3, ema=0.9)
    fit(training, (x, torch.arange(64) // 32), steps=60, batch_size=16, console=QUIET)
    z = model.sample_latent(16, generator=torch.Generator().manual_seed(0))
    black, white = (training.sample(z, torch.full((16,), y)).mean().item() for y in (0, 1))
    assert white - black > 0.5


def test_classes_that_are_missing_or_do_not_fit():
    training, x = projection(), images()[:6]
    for classes, error, message in (
        (None, ValueError, r"this SNGAN is conditional on 3 classes: step needs classes \[6\], got None"),
        (torch.tensor([0, 1, 2, 3, 0, 1]), IndexError, r"classes must be classes in 0\.\.2, got 3"),
        (torch.tensor([0, 1, 2, 0, 1]), RuntimeError, r"classes must have shape \(6,\), got \(5,\)"),
        (torch.zeros(6), RuntimeError, "classes must be int64 or int32, got torch.float32"),
    ):
        with pytest.raises(error, match=message):
            training.step(x, classes)
    with pytest.raises(ValueError, match=r"this DCGAN knows no classes: classes must be None, got \(6,\)"):
        gan_training().step(x, torch.zeros(6, dtype=torch.int64))

    def run(data):
        fit(projection(), data, steps=1, batch_size=6, console=QUIET)

    with pytest.raises(ValueError, match=r"conditional on 3 classes: data must be \(images, classes\)"):
        run(x)
    with pytest.raises(IndexError, match=r"fit: classes must be classes in 0\.\.2, got -1"):
        run((x, torch.tensor([0, 1, 2, -1, 0, 1])))
    with pytest.raises(ValueError, match=r"classes must be one an image, \[6\], got \(5,\)"):
        run((x, torch.arange(5)))
    with pytest.raises(TypeError, match=r"must be images or \(images, classes\), Tensors, got \['Tensor', 'str'\]"):
        run([[x, "cat"]])
    with pytest.raises(TypeError, match=r"data must be a Tensor, a tuple \(images, classes\), .*, got int"):
        run(3)
