"""The model zoo: published sizes, the registry, and gencore's layers against torch.nn's with the same weights."""

import copy
import dataclasses

import pytest
import torch

import gencore
from gencore import losses
from gencore.models import DCGAN, VAE
from gencore.models.registry import register_model


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "options", "generator", "discriminator"),
    [
        ("dcgan_64", {}, 3_576_704, 2_765_568),
        ("dcgan_64_paper", {}, 18_855_040, 17_232_768),
        ("dcgan_32", {"channels": 1}, 1_066_880, 661_248),
    ],
)
def test_dcgan_parameter_counts(name, options, generator, discriminator):
    model = gencore.create_model(name, **options)
    assert count(model.generator) == generator
    assert count(model.discriminator) == discriminator


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("vae_32", {}, 469_173),
        ("vae_64", {"channels": 1}, 502_005),
        ("vae_64", {}, 504_055),
        ("vae_mlp", {}, 652_824),
        ("vae_mlp", {"hidden": 500}, 815_824),
        ("vae_mlp", {"hidden": 512, "latent": 16}, 829_232),
    ],
)
def test_vae_parameter_counts(name, options, expected):
    assert count(gencore.create_model(name, **options)) == expected


@pytest.mark.parametrize("name", gencore.list_models("dcgan*"))
def test_dcgan_shapes(name):
    model = gencore.create_model(name, width=4)
    images = model(model.sample_latent(3))
    assert images.shape == (3, 3, model.config.resolution, model.config.resolution)
    assert images.abs().max() <= 1
    assert model.discriminator(images).shape == (3,)


@pytest.mark.parametrize("name", gencore.list_models("vae*"))
def test_vae_shapes(name):
    model = gencore.create_model(name)
    x = torch.rand(3, model.config.channels, model.config.resolution, model.config.resolution)
    logits, kl = model(x)
    assert logits.shape == x.shape
    assert kl.shape == (3,)
    assert (kl >= 0).all()
    images = model.decode(model.sample_latent(5))
    assert images.shape == (5, *x.shape[1:])
    assert 0 <= images.min() <= images.max() <= 1


def test_dcgan_initialisation():
    model = gencore.create_model("dcgan_64")
    weight = model.generator.up[0].conv.weight
    assert abs(weight.mean()) < 1e-4
    assert abs(weight.std() - 0.02) < 1e-4
    norm = model.discriminator.down[2].norm
    assert abs(norm.weight.mean() - 1) < 5e-3
    assert abs(norm.weight.std() - 0.02) < 5e-3
    assert (norm.bias == 0).all()


def test_vae_signal_keeps_its_scale():
    """He's initialisation: from the latent code to the logits, through seven layers, the scale is about the same."""
    torch.manual_seed(0)
    model = gencore.create_model("vae_64")
    x = torch.randn(16, 3, 64, 64)
    mu, logvar = model.encode(x)
    assert 0.3 < mu.std() < 3
    assert 0.3 < logvar.std() < 3
    assert 0.3 < model.decoder(torch.randn(16, 10)).std() < 3
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith("bias"))


def test_latent_codes():
    gan, vae = gencore.create_model("dcgan_32"), gencore.create_model("vae_32")
    uniform = gan.sample_latent(2000, generator=torch.Generator().manual_seed(0))
    normal = vae.sample_latent(20000, generator=torch.Generator().manual_seed(0))
    assert uniform.abs().max() <= 1
    assert abs(uniform.std() - 3**-0.5) < 5e-3
    assert abs(normal.std() - 1) < 5e-3
    assert torch.equal(uniform, gan.sample_latent(2000, generator=torch.Generator().manual_seed(0)))


def test_vae_is_deterministic_in_evaluation():
    model = gencore.create_model("vae_32")
    x = torch.rand(2, 1, 32, 32)
    assert not torch.equal(model(x)[0], model(x)[0])
    first, again = (model(x, generator=torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(first, again)
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


# --- gencore's layers and torch.nn's ---------------------------------------------------------------------------------


def twins(name, **options):
    """The same network twice with the same weights, in float64: on gencore's layers and on torch.nn's."""
    own = gencore.create_model(name, **options).double()
    plain = gencore.create_model(name, layers="torch", **options).double()
    assert list(own.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(own.state_dict())
    return own, plain


def assert_equal_gradients_and_buffers(own, plain):
    for (name, a), b in zip(own.named_parameters(), plain.parameters(), strict=True):
        assert b.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")
    for (name, a), b in zip(own.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", gencore.list_models("dcgan*"))
def test_dcgan_equals_torch(name, layout):
    own, plain = (m.to(memory_format=layout) for m in twins(name, width=8))
    z = own.sample_latent(4)
    real = torch.rand(4, 3, own.config.resolution, own.config.resolution, dtype=torch.float64) * 2 - 1
    outputs = []
    for model in (own, plain):
        fake = model(z)
        logits = model.discriminator(fake)
        loss = losses.logistic_discriminator(model.discriminator(real.to(memory_format=layout)), logits)
        (loss + losses.non_saturating_generator(logits)).backward()
        outputs.append((fake, logits, loss))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-11)
    assert_equal_gradients_and_buffers(own, plain)
    own.eval(), plain.eval()
    torch.testing.assert_close(own(z), plain(z), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", gencore.list_models("vae*"))
def test_vae_equals_torch(name):
    own, plain = twins(name)
    own.eval(), plain.eval()  # z at its mean: the two draw their noise from different generators
    x = torch.rand(3, own.config.channels, own.config.resolution, own.config.resolution, dtype=torch.float64)
    outputs = []
    for model in (own, plain):
        logits, kl = model(x)
        loss = losses.elbo_loss(losses.bernoulli_nll(logits, x), kl)
        loss.backward()
        outputs.append((logits, kl, loss))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-11)
    assert_equal_gradients_and_buffers(own, plain)


@pytest.mark.parametrize("layers", ["gencore", "torch"])
def test_sampled_code_has_the_encoder_moments(layers):
    """Both tables draw z = mu + exp(logvar / 2) * eps: the training-mode noise that the test above leaves out."""
    table = gencore.nn.layers.get_layers(layers)
    mu, logvar = torch.full((200, 500), 1.5), torch.full((200, 500), -0.8)
    z, kl = table.reparameterize_kl(mu, logvar, generator=torch.Generator().manual_seed(1))
    assert abs(z.mean() - 1.5) < 0.01
    assert abs(z.var() - torch.tensor(-0.8).exp()) < 0.01
    torch.testing.assert_close(kl, torch.full((200,), 250 * (2.718281828**-0.8 + 2.25 - 1 + 0.8)), rtol=1e-5, atol=0)


def test_gradient_penalty_through_the_generator_layers():
    """WGAN-GP differentiates twice through these layers; batch norm in evaluation mode keeps samples apart."""
    own, plain = twins("dcgan_32", width=4, channels=1)
    real, fake = torch.randn(2, 3, 1, 32, 32, dtype=torch.float64)
    for model in (own, plain):
        model.discriminator.eval()
        losses.gradient_penalty(model.discriminator, real, fake, generator=torch.Generator().manual_seed(0)).backward()
    for a, b in zip(own.discriminator.parameters(), plain.discriminator.parameters(), strict=True):
        if b.grad is not None:
            # No path leads to a bias under a ReLU: PyTorch walks it all the same, and gets zeros.
            grad = torch.zeros_like(b) if a.grad is None else a.grad
            torch.testing.assert_close(grad, b.grad, rtol=1e-7, atol=1e-10)


def test_models_copy_and_keep_their_layers():
    model = gencore.create_model("vae_32")
    x = torch.rand(1, 1, 32, 32)
    assert torch.equal(copy.deepcopy(model).eval()(x)[0], model.eval()(x)[0])


# --- the registry ----------------------------------------------------------------------------------------------------


def test_list_models():
    names = gencore.list_models()
    assert {"dcgan_32", "dcgan_64", "dcgan_64_paper", "vae_32", "vae_64", "vae_mlp"} <= set(names)
    assert names == sorted(names)
    assert gencore.list_models("vae*") == [n for n in names if n.startswith("vae")]
    assert gencore.list_models("nothing") == []


def test_create_model():
    assert isinstance(gencore.create_model("dcgan_32"), DCGAN)
    model = gencore.create_model("vae_32", latent=3)
    assert isinstance(model, VAE)
    assert model.config.latent == 3
    assert gencore.create_model("vae_32").config.latent == 10  # the preset is unchanged
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.config.latent = 4


def test_create_model_refuses():
    with pytest.raises(ValueError, match="no model 'dcgan64'; did you mean 'dcgan_64'"):
        gencore.create_model("dcgan64")
    with pytest.raises(ValueError, match=r"there are biggan_128, .*dcgan_32, "):
        gencore.create_model("xyz")
    with pytest.raises(TypeError, match="dcgan_64 has no option 'ngf'; it has resolution, channels"):
        gencore.create_model("dcgan_64", ngf=32)
    with pytest.raises(ValueError, match="layers must be one of torch, gencore; got 'jax'"):
        gencore.create_model("dcgan_64", layers="jax")
    with pytest.raises(ValueError, match=r"resolution must be 8, 16, 32, .*; got 48"):
        gencore.create_model("dcgan_64", resolution=48)
    with pytest.raises(ValueError, match=r"resolution must be .* got 4"):
        gencore.create_model("vae_32", resolution=4)
    with pytest.raises(ValueError, match="kernel_size must be 4 or 5, got 3"):
        gencore.create_model("dcgan_64", kernel_size=3)
    with pytest.raises(ValueError, match="already the name"):
        register_model(vae_32=None)(DCGAN)
