"""ProGAN, StyleGAN and StyleGAN2: published sizes, growth, styles, noise, and derivatives of whole networks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.registry import lookup_backend
from torch.utils._python_dispatch import TorchDispatchMode

import gencore
from gencore.extension import EXTENSION
from gencore.models.styles import NOISE_SETTINGS, Noise, mix_styles, style_layers, truncate

TINY = {"resolution": 16, "channels": 2, "latent": 6, "channel_budget": 96, "max_channels": 8}
STYLED = {"style": 6, "mapping_layers": 2}
OPTIONS = {"progan_256": TINY, "stylegan_256": TINY | STYLED, "stylegan2_256": TINY | STYLED}
NAMES = tuple(OPTIONS)


def tiny(name, *, seed=0, layers="gencore", **changes):
    """A small model in float64 whose noise strengths and biases are not 0."""
    torch.manual_seed(seed)
    model = gencore.create_model(name, layers=layers, **(OPTIONS[name] | changes)).double()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("noise_strength", "noise.weight")) or (key.endswith("bias") and "affine" not in key):
                parameter.normal_()
    return model


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "options", "generator", "discriminator"),
    [
        ("progan_64", {}, 22_490_383, 22_498_049),
        ("progan_256", {}, 23_044_309, 23_052_353),
        ("progan_1024", {}, 23_079_115, 23_087_249),
        ("stylegan_256", {}, 26_086_229, 23_052_353),
        ("stylegan_1024", {}, 26_219_627, 23_087_249),
        ("stylegan2_32", {}, 19_947_539, 21_507_073),
        ("stylegan2_64", {}, 23_819_544, 23_407_361),
        ("stylegan2_64", {"channel_budget": 32768}, 27_032_600, 26_488_833),
        ("stylegan2_256_half", {}, 24_767_458, 24_001_089),
        ("stylegan2_256", {}, 30_034_338, 28_864_129),
        ("stylegan2_1024", {}, 30_370_060, 29_012_513),
    ],
)
def test_parameter_counts(name, options, generator, discriminator):
    with torch.device("meta"):
        model = gencore.create_model(name, **options)
    assert count(model.generator) == generator
    assert count(model.discriminator) == discriminator


@pytest.mark.parametrize("resolution", [4, 8, 64])
@pytest.mark.parametrize("name", NAMES)
def test_shapes(name, resolution):
    model = tiny(name, resolution=resolution)
    images = model(model.sample_latent(4))
    assert images.shape == (4, 2, resolution, resolution)
    assert model.discriminator(images).shape == (4,)
    assert model.discriminator(images[:3]).shape == (3,)  # fewer than a group


@pytest.mark.parametrize("resolution", [2, 6, 48, 2048, 0, -4, 16.0, "16"])
@pytest.mark.parametrize("name", NAMES)
def test_resolutions_that_are_none(name, resolution):
    with pytest.raises(ValueError, match=f"resolution must be a power of two from 4 to 1024, got {resolution!r}"):
        gencore.create_model(name, resolution=resolution)


@pytest.mark.parametrize("name", ["stylegan_256", "stylegan2_256"])
def test_one_style_a_layer(name):
    synthesis = tiny(name).generator.synthesis
    for shape in ((2, 5, 6), (2, 7, 6), (2, 6)):
        with pytest.raises(RuntimeError, match=r"styles must have shape \[N, 6, style\], got \(2, "):
            synthesis(torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(4, 2, 8, 8), (4, 2, 16, 8), (2, 16, 16)])
def test_images_of_another_size(name, shape):
    with pytest.raises(RuntimeError, match=r"Discriminator: images must be \[N, C, 16, 16\]"):
        tiny(name).discriminator(torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_keeps_its_scale(name):
    """Equalised learning rates: N(0, 1) weights and He's constant carry about unit variance through both networks."""
    torch.manual_seed(0)
    model = gencore.create_model(name, resolution=32, channel_budget=2048, max_channels=64)
    images = model(torch.randn(8, 512))
    logits = model.discriminator(torch.randn(16, 3, 32, 32))
    assert 0.2 < images.std() < 5
    assert 0.1 < logits.square().mean().sqrt() < 5


@pytest.mark.parametrize("name", NAMES)
def test_equals_plain_pytorch(name):
    own, plain = tiny(name), tiny(name, layers="torch", seed=1)
    plain.load_state_dict(own.state_dict())
    z, images = torch.randn(2, 4, 6, dtype=torch.float64)[0], torch.randn(4, 2, 16, 16, dtype=torch.float64)
    outputs = []
    for model in (own, plain):
        fake = model(z) if name == "progan_256" else model(z, noise="const")
        loss = F.softplus(model.discriminator(fake)).sum() + model.discriminator(images).sum()
        loss.backward()
        outputs.append((fake, loss))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-10)
    for (key, a), b in zip(own.named_parameters(), plain.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


# --- growing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["progan_256", "stylegan_256"])
def test_growth_keeps_the_function(name):
    """At alpha 0 the larger networks do what the smaller ones did, on pixels of twice the size."""
    model = tiny(name).eval()
    draw = (lambda z: model(z)) if name == "progan_256" else (lambda z: model(z, noise="const"))
    z, real = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 2, 16, 16, dtype=torch.float64)
    model.grow(8)
    small, logits = draw(z), model.discriminator(F.avg_pool2d(real, 2))
    assert small.shape == (4, 2, 8, 8)
    model.grow(16, 0.0)
    torch.testing.assert_close(draw(z), small.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(model.discriminator(real), logits)
    model.grow(16)
    grown, grown_logits = draw(z), model.discriminator(real)
    assert not torch.allclose(grown, F.interpolate(small, scale_factor=2.0))
    model.grow(16, 0.25)
    torch.testing.assert_close(draw(z), 0.75 * F.interpolate(small, scale_factor=2.0) + 0.25 * grown)
    assert not torch.allclose(model.discriminator(real), grown_logits)


@pytest.mark.parametrize("name", ["progan_256", "stylegan_256"])
def test_the_stage_of_growth(name):
    model = tiny(name)
    model.grow(8, 0.5)
    other = tiny(name, seed=3)
    other.load_state_dict(model.state_dict())
    assert other(other.sample_latent(2)).shape == (2, 2, 8, 8)
    assert other.discriminator.now() == (8, 0.5)
    with pytest.raises(
        RuntimeError, match=r"images must be \[N, C, 8, 8\] at this stage of growth, got \(1, 2, 16, 16"
    ):
        other.discriminator(torch.randn(1, 2, 16, 16, dtype=torch.float64))
    for resolution, alpha, message in (
        (32, 1.0, r"resolution must be one of \[4, 8, 16\], got 32"),
        (7, 1.0, r"resolution must be one of \[4, 8, 16\], got 7"),
        (8, 1.5, r"alpha must be in \[0, 1\], got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            model.grow(resolution, alpha)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(tiny(name, resolution=32).state_dict())
    assert model.discriminator.now() == (8, 0.5)
    assert model.discriminator.stage.tolist() == [8, 0.5]
    model.grow(4, 0.5)
    assert model.discriminator.now() == (4, 1.0)  # there is nothing to fade from


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated.*")
@pytest.mark.parametrize("name", NAMES)
def test_compiles_as_one_graph(name):
    """Each network, in training; a fade-in runs in one graph, and only the next stage is compiled anew."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    model = tiny(name, resolution=8)
    options = {} if name == "progan_256" else {"noise": "const"}
    networks = model.generator, model.discriminator
    compiled = [torch.compile(network, fullgraph=True, backend=backend) for network in networks]
    z = model.sample_latent(4)
    stages = [(8, 0.25, 2), (8, 0.5, 2), (8, 1.0, 4)] if hasattr(model, "grow") else [(8, 1.0, 2)] * 2
    for resolution, alpha, wanted in stages:
        if hasattr(model, "grow"):
            model.grow(resolution, alpha)
        results = []
        for generator, discriminator in (networks, compiled):
            images = generator(z, **options)
            logits = discriminator(images)
            gradients = torch.autograd.grad(logits.sum(), list(model.parameters()), allow_unused=True)
            results.append((images, logits, *(g for g in gradients if g is not None)))
        torch.testing.assert_close(results[0], results[1])
        assert len(graphs) == wanted, (resolution, alpha)


def test_layers_that_are_not_in_use_get_no_gradient():
    model = tiny("progan_256")
    model.grow(8)
    model.discriminator(model(model.sample_latent(4))).sum().backward()
    for key, parameter in model.named_parameters():
        unused = ".16." in key or "to_rgb.4" in key or "from_rgb.4" in key
        assert (parameter.grad is None) == unused, key


# --- styles ----------------------------------------------------------------------------------------------------------


def test_truncation():
    model = tiny("stylegan2_256").eval()
    mapping = model.generator.mapping
    mapping.w_avg.normal_()
    z = torch.randn(3, 6, dtype=torch.float64)
    w = mapping(z)
    assert w.shape == (3, 6, 6)
    torch.testing.assert_close(mapping(z, truncation=0.0), mapping.w_avg.expand(3, 6, 6))
    torch.testing.assert_close(mapping(z, truncation=0.7), 0.7 * w + 0.3 * mapping.w_avg)
    cut = mapping(z, truncation=0.7, cutoff=4)
    torch.testing.assert_close(cut[:, :4], 0.7 * w[:, :4] + 0.3 * mapping.w_avg)
    assert torch.equal(cut[:, 4:], w[:, 4:])
    assert truncate(w, mapping.w_avg, 1.0) is w
    assert not torch.allclose(model(z, noise="none"), model(z, noise="none", truncation=0.5))


def test_the_average_style_is_followed_while_training():
    model = tiny("stylegan_256")
    mapping = model.generator.mapping
    z = model.sample_latent(5)
    w = mapping(z)[:, 0]
    torch.testing.assert_close(mapping.w_avg, 0.005 * w.mean(0))
    mapping(z)
    torch.testing.assert_close(mapping.w_avg, 0.005 * (1 + 0.995) * w.mean(0))
    before = mapping.w_avg.clone()
    mapping.eval()(z)
    assert torch.equal(mapping.w_avg, before)


def test_style_groups_are_the_papers():
    layers = list(range(18))
    assert layers[style_layers("coarse")] == [0, 1, 2, 3]
    assert layers[style_layers("middle")] == [4, 5, 6, 7]
    assert layers[style_layers("fine")] == list(range(8, 18))
    assert layers[style_layers((8, 8))] == [2, 3]
    assert layers[style_layers("coarse", skips=True)] == [0, 1, 2]
    assert layers[style_layers("middle", skips=True)] == [3, 4, 5, 6]
    assert layers[style_layers((8, 8), skips=True)] == [1, 2]


@pytest.mark.parametrize("name", ["stylegan_256", "stylegan2_256"])
def test_style_mixing(name):
    model = tiny(name).eval()
    synthesis = model.generator.synthesis
    a, b = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    kept = a.clone()
    mixed = mix_styles(a, b, "coarse")
    assert torch.equal(a, kept)  # a copy
    assert torch.equal(mixed[:, :4], b[:, :4])
    assert torch.equal(mixed[:, 4:], a[:, 4:])
    whole = mix_styles(a, b, (4, 16))
    torch.testing.assert_close(synthesis(whole, "const"), synthesis(b, "const"))
    images = {g: synthesis(mix_styles(a, b, g), "const") for g in ((4, 4), (8, 8), (16, 16))}
    for image in images.values():
        assert not torch.allclose(image, synthesis(a, "const"))
    with pytest.raises(ValueError, match="a style group must be one of coarse, middle, fine; got 'rough'"):
        mix_styles(a, b, "rough")
    with pytest.raises(ValueError, match=r"one shape, got \(3, 6, 6\) and \(2, 6, 6\)"):
        mix_styles(a, b[:2], "fine")
    with pytest.raises(ValueError, match="'fine' begins at layer 8 of 6: nothing would be mixed"):
        mix_styles(a, b, "fine")
    for group in ((5, 9), (16, 4), (2, 8)):
        with pytest.raises(ValueError, match=r"from one power of two in 4..1024 up to another, got"):
            mix_styles(a, b, group)


def test_which_layers_of_a_stylegan2_are_mixed():
    """Both convolutions of a resolution; their style is the picture's before too, the last picture has its own."""
    synthesis = tiny("stylegan2_256").generator.synthesis
    a, b = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    conv = {(r, c) for r in (4, 8, 16) for c in ("conv0", "conv1")} - {(4, "conv0")}
    taken = {}
    for r, block in synthesis.blocks.items():
        for name in ("conv0", "conv1", "to_rgb"):
            if hasattr(block, name):
                hook = lambda m, args, key=(int(r), name): taken.update({key: args[1]})  # noqa: E731
                getattr(block, name).register_forward_pre_hook(hook)
    for group in ((4, 4), (8, 8), (16, 16), (4, 8), (8, 16), (4, 16)):
        synthesis(mix_styles(a, b, group, skips=True), "const")
        changed = {key for key, style in taken.items() if not any(torch.equal(style, s) for s in a.unbind(1))}
        assert changed & conv == {(r, c) for r, c in conv if group[0] <= r <= group[1]}
        before = {(r, "to_rgb") for r in (4, 8) if group[0] <= 2 * r <= group[1]}
        assert changed - conv == before | ({(16, "to_rgb")} if group[1] == 16 else set())


def test_an_empty_batch_leaves_the_average_style_alone():
    mapping = tiny("stylegan2_256").generator.mapping.train()
    mapping(torch.randn(4, 6, dtype=torch.float64))
    before = mapping.w_avg.clone()
    assert mapping(torch.randn(0, 6, dtype=torch.float64)).shape == (0, 6, 6)
    assert torch.equal(mapping.w_avg, before)


@pytest.mark.skipif(not EXTENSION.loaded, reason="needs the C++ extension")
def test_a_style_and_its_norm_are_one_op():
    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    names = []
    model = tiny("stylegan_256").eval()
    with Calls(), torch.no_grad():
        model.generator.synthesis(torch.randn(2, 6, 6, dtype=torch.float64))
    assert names.count("gencore.norm_act.default") == 6
    assert not [name for name in names if "batch_norm" in name]


# --- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stylegan_256", "stylegan2_256"])
def test_noise(name):
    model = tiny(name).eval()
    z = torch.randn(2, 6, dtype=torch.float64)

    def image(setting, seed=0):
        return model(z, noise=Noise(setting, generator=torch.Generator().manual_seed(seed)))

    assert torch.equal(image("none"), image("none", 1))
    assert torch.equal(image("const"), image("const", 1))
    assert torch.equal(image("random"), image("random"))
    assert not torch.allclose(image("random"), image("random", 1))
    assert not torch.allclose(image("const"), image("none"))
    assert not torch.equal(model(z), model(z))
    with pytest.raises(ValueError, match="noise must be 'random', 'const' or 'none'; got 'loud'"):
        model(z, noise="loud")


@pytest.mark.parametrize("name", ["stylegan_256", "stylegan2_256"])
def test_noise_ablation(name):
    """All layers, none, fine ones, coarse ones: a setting moves with the strengths of its own layers and no other."""
    model = tiny(name).eval()
    z = torch.randn(2, 6, dtype=torch.float64)
    strengths = {
        int(r): [p for k, p in block.named_parameters() if k.endswith(("noise_strength", "noise.weight"))]
        for r, block in model.generator.synthesis.blocks.items()
    }
    assert all(strengths.values())
    active = {"all": {4, 8, 16}, "none": set(), "fine": {8, 16}, "coarse": {4}}
    assert tuple(active) == NOISE_SETTINGS
    for setting, wanted in active.items():
        noise = Noise.ablation(setting, boundary=8, kind="const")
        before = model(z, noise=noise)
        for resolution, own in strengths.items():
            changed = copy.deepcopy(own)
            with torch.no_grad():
                for p in own:
                    p.mul_(2)
            assert torch.equal(model(z, noise=noise), before) == (resolution not in wanted), (setting, resolution)
            with torch.no_grad():
                for p, old in zip(own, changed, strict=True):
                    p.copy_(old)
    assert (Noise.ablation("fine").low, Noise.ablation("coarse").high) == (64, 32)  # the paper's
    with pytest.raises(ValueError, match="noise setting must be one of all, none, fine, coarse; got 'some'"):
        Noise.ablation("some")


# --- derivatives -----------------------------------------------------------------------------------------------------

MINUTE = {"resolution": 8, "channels": 1, "latent": 3, "channel_budget": 16, "max_channels": 2}


def minute(name):
    return tiny(name, **MINUTE, **({} if name == "progan_256" else {"style": 3, "mapping_layers": 1}))


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_of_a_discriminator(name):
    """What R1 and the gradient penalty need, with respect to the images and to every weight."""
    network = minute(name).discriminator
    if name != "stylegan2_256":
        network.grow(8, 0.5)
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    keys, weights = zip(*network.named_parameters(), strict=True)

    def logits(images, *weights):
        return torch.func.functional_call(network, dict(zip(keys, weights, strict=True)), (images,))

    assert torch.autograd.gradcheck(logits, (images, *weights))
    assert torch.autograd.gradgradcheck(logits, (images, *weights))


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_of_a_generator(name):
    """What path lengths need, with respect to the styles (of a ProGAN: z) and to every weight."""
    model = minute(name).eval()
    if name == "progan_256":
        network, options = model.generator, ()
        network.grow(8, 0.5)
        code = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    else:
        network, options = model.generator.synthesis, ("const",)
        code = torch.randn(1, model.config.layers, 3, dtype=torch.float64, requires_grad=True)
    keys, weights = zip(*network.named_parameters(), strict=True)

    def images(code, *weights):
        return torch.func.functional_call(network, dict(zip(keys, weights, strict=True)), (code, *options))

    assert torch.autograd.gradcheck(images, (code, *weights))
    assert torch.autograd.gradgradcheck(images, (code, *weights))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_configurations_that_could_not_work(name):
    with pytest.raises(ValueError, match=r"channel_budget must be at least the resolution 1024, .* got 512"):
        gencore.create_model(name, resolution=1024, channel_budget=512, max_channels=8)
    sizes = ["latent", "channels", "max_channels"] + (["style", "mapping_layers"] if name != "progan_256" else [])
    for size in sizes:
        with pytest.raises(ValueError, match=f"{size} must be at least 1, got 0"):
            tiny(name, **{size: 0})


@pytest.mark.parametrize("name", ["progan_256", "stylegan_256"])
def test_the_stage_keeps_its_precision(name):
    model = tiny(name)
    model.grow(8.0, 0.999)
    model.bfloat16().float()
    network = model.discriminator
    assert network.stage.tolist() == [8, 0.999]
    assert network.now() == (8, 0.999)
    assert network(torch.randn(1, 2, 8, 8)).shape == (1,)


def test_settings_that_could_not_work():
    with pytest.raises(ValueError, match="truncation must be a finite number, got nan"):
        truncate(torch.randn(1, 4, 3), torch.zeros(3), float("nan"))
    with pytest.raises(ValueError, match="noise must enter from a resolution on up to another, got 64 to 8"):
        Noise(low=64, high=8)
    assert Noise.ablation("coarse", boundary=4).kind == "none"
