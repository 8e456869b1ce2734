"""SNGAN, SAGAN and BigGAN: published sizes, shapes, and gencore's layers against torch.nn's with the same weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.utils.parametrize import is_parametrized

import gencore
from gencore import losses
from gencore.nn.utils.statistics import standing_statistics
from gencore.train import EMA, GANTraining
from gencore.train.ema import WeightAverage
from tests.processes import run_python

SMALL = {
    "sngan_32": {"generator": (8, 8, 8, 8), "discriminator": (8, 8, 8, 8)},
    "sngan_32_classes": {"generator": (8, 8, 8, 8), "discriminator": (8, 8, 8, 8), "classes": 3},
    "sagan_128": {
        "resolution": 32,
        "generator": (16, 16, 16, 8),
        "discriminator": (8, 16, 16),
        "classes": 3,
        "attention": 16,
        "latent": 16,
    },
    "biggan_32": {"width": 2, "classes": 3},
    "biggan_128": {
        "resolution": 32,
        "generator": (4, 4, 2, 1),
        "discriminator": (1, 2, 4, 4),
        "width": 8,
        "classes": 3,
        "shared": 6,
        "chunk": 5,
        "attention": 16,
    },
    "biggan_512": {
        "resolution": 16,
        "generator": (4, 2, 1),
        "discriminator": (1, 2, 2),
        "width": 8,
        "classes": 3,
        "attention": 8,
    },
    "biggan_deep_128_released": {
        "resolution": 16,
        "generator": (4, 2, 1),
        "discriminator": (1, 2, 4),
        "width": 8,
        "classes": 3,
        "attention": 8,
    },
    "biggan_deep_128": {
        "resolution": 32,
        "generator": (4, 4, 2, 1),
        "discriminator": (1, 2, 4, 4),
        "width": 8,
        "classes": 3,
        "shared": 6,
        "latent": 5,
        "attention": 16,
    },
}


# Other forms of which the sizes are known: SNGAN for 64x64, and a BigGAN for CIFAR-10 with hierarchical z.
SNGAN_64 = {
    "resolution": 64,
    "generator": (1024, 512, 256, 128, 64),
    "discriminator": (64, 128, 256, 512, 1024),
    "halvings": 4,
}
BIGGAN_32_SHARED = {"width": 96, "discriminator": (2, 2, 2, 2), "chunk": 20, "shared": 128, "attention": 16}


def small(name, **options):
    return gencore.create_model(name.removesuffix("_classes"), **SMALL[name], **options)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "options", "generator", "discriminator"),
    [
        ("sngan_32", {}, 4_276_739, 1_053_825),
        ("sngan_32_projection", {}, 4_304_387, 1_055_105),
        ("sngan_32", SNGAN_64, 12_220_675, 10_141_441),
        ("sngan_128", {}, 32_150_787, 29_017_857),
        ("sngan_128_projection", {}, 41_996_931, 30_041_857),
        ("sngan_128_projection", {"wide": True}, 41_996_931, 39_443_137),
        ("sagan_128", {}, 42_078_852, 39_463_618),
        ("sagan_128", {"attention": 64}, 42_017_412, 39_448_258),
        ("biggan_32", {}, 4_304_387, 4_207_361),
        ("biggan_32", BIGGAN_32_SHARED, 9_416_196, 2_415_170),
        ("biggan_128", {}, 70_433_988, 87_982_370),
        ("biggan_256", {}, 82_235_844, 99_225_890),
        ("biggan_512", {}, 85_613_796, 144_195_362),
        ("biggan_512_released", {}, 82_468_068, 99_401_282),
        ("biggan_deep_128", {}, 50_244_484, 34_590_210),
        ("biggan_deep_256", {}, 55_736_708, 38_247_426),
        ("biggan_deep_512", {}, 56_019_780, 38_301_122),
        ("biggan_deep_128_released", {}, 50_388_609, 34_590_210),
        ("biggan_deep_256_released", {}, 55_880_833, 38_247_426),
        ("biggan_deep_512_released", {}, 56_163_905, 38_301_122),
    ],
)
def test_parameter_counts(name, options, generator, discriminator):
    with torch.device("meta"):
        model = gencore.create_model(name, **options)
    assert count(model.generator) == generator
    assert count(model.discriminator) == discriminator


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sngan_32", {"attention": 12}),
        ("sngan_32", {"attention": 32}),
        ("sagan_128", {"attention": 4}),
        ("biggan_128", {"attention": 17}),
        ("biggan_128", {"attention": 128}),
        ("biggan_128", {"generator_attention": 4}),
        ("biggan_32", {"attention": 4}),
        ("biggan_deep_128", {"attention": 48}),
        ("biggan_deep_128", {"attention": 128}),
    ],
)
def test_attention_at_a_resolution_that_does_not_occur(name, options):
    (option,) = options
    with pytest.raises(ValueError, match=f"{option} must be 0 or one of .*; got {options[option]}"):
        gencore.create_model(name, **options)


def test_table_of_biggan_512():
    """Table 6 of the paper: 160 = 8 x 20 numbers, the first layer and the class norms see 148, D halves seven times."""
    with torch.device("meta"):
        model = gencore.create_model("biggan_512")
    assert model.config.latent_length == 160
    assert model.generator.linear.in_features == 148
    assert model.generator.blocks["512"].norm1.gain.in_features == 148
    assert [b.norm1.num_features // 96 for b in model.generator.blocks.values()] == [16, 16, 8, 8, 4, 2, 1]
    assert list(model.generator.attention) == ["64"]
    blocks = [s for s in model.discriminator.stages if hasattr(s, "down")]
    assert [b.conv2.out_channels // 96 for b in blocks] == [1, 2, 4, 8, 8, 16, 16, 16]
    assert [b.down for b in blocks] == [True] * 7 + [False]
    assert hasattr(model.discriminator.stages[3], "attention_maps")


def test_attention_of_the_papers_biggan_256():
    """Table 5: the generator's at 128x128, the discriminator's, for want of memory, at 64x64."""
    with torch.device("meta"):
        model = gencore.create_model("biggan_256", generator_attention=128, linear_sees_class=True)
    assert list(model.generator.attention) == ["128"]
    assert model.generator.attention["128"].channels == 2 * 96
    assert hasattr(model.discriminator.stages[2], "attention_maps")
    assert model.generator.linear.in_features == 148


def draw(model, n=4):
    generator = torch.Generator().manual_seed(5)
    dtype = next(model.parameters()).dtype
    z = model.sample_latent(n, generator=generator)
    y = model.sample_classes(n, generator=generator)
    images = torch.randn(n, 3, *[model.config.resolution] * 2, generator=generator, dtype=dtype).clamp(-1, 1)
    return z, y, images


@pytest.mark.parametrize("name", SMALL)
def test_shapes(name):
    torch.manual_seed(0)
    model = small(name)
    z, y, images = draw(model)
    fake = model(z, y) if y is not None else model(z)
    assert fake.shape == images.shape
    assert fake.abs().max() <= 1
    assert model.discriminator(fake, y).shape == (4,)
    assert torch.equal(copy.deepcopy(model).eval()(z, y), model.eval()(z, y))


@pytest.mark.parametrize("name", SMALL)
def test_equals_torch(name):
    """The same weights on plain torch.nn: images, logits, gradients, statistics and singular vectors."""
    torch.manual_seed(0)
    own, plain = small(name).double(), small(name, layers="torch").double()
    assert list(own.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        for module in own.modules():
            if hasattr(module, "gamma"):
                module.gamma.fill_(0.5)
    plain.load_state_dict(own.state_dict())
    z, y, images = draw(own)
    outputs = []
    for model in (own, plain):
        fake = model(z, y)
        real_logits, fake_logits = model.discriminator(images, y), model.discriminator(fake, y)
        loss = losses.hinge_discriminator(real_logits, fake_logits) + losses.wasserstein_generator(fake_logits)
        loss.backward()
        outputs.append((fake, real_logits, fake_logits))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-8, atol=1e-10)
    for (n, a), b in zip(own.named_parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), n
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9, msg=lambda m, n=n: f"{n}: {m}")
    for (n, a), b in zip(own.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=lambda m, n=n: f"{n}: {m}")
    own.eval(), plain.eval()
    torch.testing.assert_close(own(z, y), plain(z, y), rtol=1e-8, atol=1e-10)


def test_discriminator_does_not_change_its_input():
    torch.manual_seed(0)
    model = small("sngan_32")
    block = model.discriminator.stages[1]
    x = torch.randn(2, 8, 8, 8)
    before = x.clone()
    block(x)
    assert torch.equal(x, before)


def test_spectral_norm_can_be_left_out():
    assert any("_u" in n for n, _ in small("sngan_32").discriminator.named_buffers())
    assert not any("_u" in n for n, _ in small("sngan_32", spectral_norm=False).discriminator.named_buffers())


def test_classes_matter_and_are_checked():
    torch.manual_seed(0)
    model = small("biggan_128").eval()
    z, _, _ = draw(model, 2)
    one, two = model(z, torch.tensor([0, 0])), model(z, torch.tensor([1, 1]))
    assert not torch.allclose(one, two, atol=1e-4)
    embedded = model.generator.embed(torch.tensor([0, 0]))
    assert torch.equal(model(z, embedded), one)
    with pytest.raises(IndexError):
        model(z, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="needs the classes"):
        model(z, None)
    with pytest.raises(ValueError, match="y must be None"):
        small("sngan_32")(torch.randn(2, 128), torch.tensor([0, 0]))


@pytest.mark.parametrize("name", ["sngan_32_classes", "sagan_128", "biggan_32", "biggan_128", "biggan_deep_128"])
def test_what_the_networks_are_called_with_is_checked(name):
    model = small(name)
    z, _, x = draw(model, 2)
    for call in (lambda y: model(z, y), lambda y: model.discriminator(x, y)):
        for y, error, message in (
            (torch.tensor([0, 3]), IndexError, r"must be classes in 0\.\.2, got 3"),
            (torch.tensor([-1, 0]), IndexError, r"must be classes in 0\.\.2, got -1"),
            (torch.tensor([0, 1, 2]), RuntimeError, r"y must have shape \(2,\), got \(3,\)"),
            (torch.tensor([0.0, 1.0]), RuntimeError, "y must have shape|must be int64 or int32, got torch.float32"),
            (None, ValueError, "needs the classes"),
        ):
            with pytest.raises(error, match=message):
                call(y)
    with pytest.raises(RuntimeError, match=rf"z must have shape \[N, {z.shape[1]}\], got \(2, {z.shape[1] + 1}\)"):
        model(torch.randn(2, z.shape[1] + 1), torch.tensor([0, 1]))


def test_hierarchical_z():
    """Each chunk reaches its own block: the last one leaves everything before the last block as it is."""
    torch.manual_seed(0)
    model = small("biggan_128").eval()
    z, y, _ = draw(model, 2)
    seen = []
    model.generator.blocks["16"].register_forward_hook(lambda *a: seen.append(a[2]))
    other = z.clone()
    other[:, -5:] += 1
    assert not torch.allclose(model(z, y), model(other, y))
    assert torch.equal(seen[0], seen[1])


def test_orthogonal_initialisation():
    model = small("biggan_128")
    weight = model.generator.blocks["8"].conv1.parametrizations.weight.original.flatten(1)
    torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), rtol=0, atol=1e-5)
    assert (model.generator.blocks["8"].conv1.bias == 0).all()


def test_truncation():
    model = small("biggan_128")
    z = model.sample_latent(4000, truncation=0.5, generator=torch.Generator().manual_seed(0))
    assert z.shape == (4000, 20)
    assert z.abs().max() <= 0.5
    # The variance of a standard normal number within +-t: 1 - 2 t phi(t) / (2 Phi(t) - 1).
    assert abs(z.var() - (1 - 2 * 0.5 * 0.352065 / 0.382925)) < 2e-3
    wide = model.sample_latent(4000, truncation=9.0)
    assert abs(wide.var() - 1) < 0.02
    with pytest.raises(ValueError, match="threshold must be positive, got 0"):
        model.sample_latent(2, truncation=0)
    with pytest.raises(ValueError, match="must be positive, got nan"):
        model.sample_latent(2, truncation=float("nan"))


def test_standing_statistics_of_a_generator():
    torch.manual_seed(0)
    model = small("biggan_128").eval()
    z, y, _ = draw(model, 2)
    before = model(z, y)
    standing_statistics(model.generator, lambda: (model.sample_latent(8, truncation=0.5), model.sample_classes(8)))
    assert not torch.allclose(model(z, y), before, atol=1e-4)
    assert not model.generator.training


@pytest.mark.parametrize("layers", ["gencore", "torch"])
@pytest.mark.parametrize("kind", ["decay", "half-life"])
def test_the_average_of_normalised_weights_is_normalised(layers, kind):
    """Weights that turn quickly: their singular vectors, averaged, would be short, and the weights too large."""
    torch.manual_seed(0)
    generator = small("biggan_128", layers=layers).generator
    average = WeightAverage(generator, 0.98) if kind == "decay" else EMA(generator, half_life=64, ramp_up=None)
    for step in range(60):
        with torch.no_grad():
            for weight in generator.parameters():
                weight.add_(torch.randn_like(weight) * weight.std(correction=0) / 4)
        generator.train()(torch.randn(2, 20), torch.tensor([0, 1]))
        average.update_parameters(generator) if kind == "decay" else average.update(generator, batch=2, seen=2 * step)
    found = average.module.eval()
    largest = [torch.linalg.matrix_norm(m.weight.flatten(1), 2) for m in found.modules() if is_parametrized(m)]
    assert len(largest) > 10
    assert max(largest) < 1.1
    assert min(largest) > 0.99


def test_the_training_of_the_documentation():
    model = small("biggan_128")
    options = {"learning_rate": 5e-5, "learning_rate_d": 2e-4, "betas": (0, 0.999), "orthogonal": 1e-4}
    training = GANTraining(model, loss="hinge", **options)
    training.step(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    z, y = model.sample_latent(4, truncation=0.5), model.sample_classes(4)
    generator = training.averaged.module
    standing_statistics(generator, lambda: (model.sample_latent(8, truncation=0.5), model.sample_classes(8)), passes=2)
    assert generator.eval()(z, y).shape == (4, 3, 32, 32)
    assert generator(z, generator.embed(y).lerp(generator.embed(y.flip(0)), 0.5)).shape == (4, 3, 32, 32)


def test_refuses():
    with pytest.raises(ValueError, match=r"resolution must be 4 \* 2\^\(number of blocks of the generator\), got 64"):
        gencore.create_model("sngan_32", resolution=64)
    with pytest.raises(ValueError, match="set shared, or chunk=0"):
        gencore.create_model("biggan_128", shared=0)
    with pytest.raises(ValueError, match="discriminator must have an entry for each resolution from 4 to 128"):
        gencore.create_model("biggan_deep_128", discriminator=(1, 2))


@pytest.mark.parametrize("layers", ["gencore", "torch"])
def test_runs_under_autocast(layers: str) -> None:
    """Attention gets 16-bit maps from the convolutions before it, and weights in float32."""
    model = gencore.create_model("sagan_128", layers=layers, **SMALL["sagan_128"])
    classes = torch.tensor([0, 2])
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.discriminator(model(model.sample_latent(2), classes), classes)
    logits.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


STEP = """
import re, torch, gencore
from gencore.train import GANTraining
torch.manual_seed(0)
model = gencore.create_model("biggan_128")
training = GANTraining(model, loss="hinge", learning_rate=5e-5, learning_rate_d=2e-4, betas=(0.0, 0.999),
                       orthogonal=1e-4, ema=0.9999)
metrics = training.step(torch.randn(2, 3, 128, 128), torch.tensor([3, 900]))
assert all(torch.tensor(value).isfinite() for value in metrics.values()), metrics
# Not getrusage's figure, which begins with that of the process that started this one.
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024)
"""


@pytest.mark.slow
def test_a_training_step_of_biggan_128_fits_in_memory():
    """158 million weights in float32, their gradients, Adam's two moments and the average of the generator are 2.7 GiB,
    the filters as the convolutions read them 1.4 GiB; the rest is for the activations of batch 2 and what the backwards
    need for a time."""
    result = run_python("-c", STEP)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout) < 6 << 30
