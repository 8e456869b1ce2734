"""Other projects' weights: what they compute, there and back again, and files that want more than to be read."""

import argparse
import io
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch

import gencore
from gencore.models.styles import Noise
from gencore.pretrained import RefusedPickle, load_pretrained, read_pickle, save_pretrained
from tests import published
from tests.published_ada import ada_discriminate, ada_generate, ada_map, ada_states

WIDTHS = {4: 12, 8: 12, 16: 8}
SMALL = {"resolution": 16, "channel_budget": 128, "max_channels": 12, "latent": 10}
STYLED = {"style": 10, "mapping_layers": 3}
CONST = Noise("const")


def stylegan2(**changes):
    torch.manual_seed(5)
    return gencore.create_model("stylegan2_256", **(SMALL | STYLED | changes))


def rosinality(size=16):
    g, d = map(published.synthesize, published.rosinality_shapes(size, WIDTHS, 10, 3))
    filters_g, filters_d = published.rosinality_filters(size)
    return {"g_ema": g | filters_g, "d": d | filters_d, "latent_avg": torch.randn(1, 10)}


def genforce(name):
    g, d = published.genforce_shapes(16, WIDTHS, 10)
    grown = {"lod": torch.zeros([])}
    if name != "stylegan_256":
        return {"generator_smooth": published.synthesize(g) | grown, "discriminator": published.synthesize(d) | grown}
    g = published.genforce_stylegan_shapes(16, WIDTHS, 10, 3)
    content = {
        "generator_smooth": published.synthesize(g) | {"synthesis.lod": torch.zeros([])},
        "discriminator": published.synthesize(d) | grown,
    }
    for key, layer, width in (
        ("generator_smooth", "synthesis.layer2", 12),
        ("generator_smooth", "synthesis.layer4", 8),
        ("discriminator", "layer1", 8),
        ("discriminator", "layer3", 12),
    ):
        content[key][f"{layer}.blur.kernel"] = published.fir(1, 2, 1).expand(width, 1, 3, 3).clone()
    return content


BIGGAN_ATTENTION = {"generator": (4, 4, 2, 1), "discriminator": (1, 2, 4, 4), "width": 8, "attention": 16}
BIGGANS = {
    "biggan_128": {"resolution": 32, "classes": 3, "shared": 6, "chunk": 5, **BIGGAN_ATTENTION},
    "biggan_32": {"width": 2, "classes": 3, "latent": 5},
    "biggan_deep_128": {"resolution": 32, "classes": 3, "shared": 6, "latent": 5, **BIGGAN_ATTENTION},
}


def biggan(name):
    """A small model, and what is in its project's files."""
    g, d = ([32, 32, 16, 8], [8, 16, 32, 32]) if name != "biggan_32" else ([8] * 4, [8] * 4)
    shapes = published.biggan_deep_shapes if name == "biggan_deep_128" else published.biggan_shapes
    options = {"shared": 0, "attended": (-1, -1)} if name == "biggan_32" else {"shared": 6, "attended": (1, 0)}
    states = map(published.synthesize_biggan, shapes(g, d, latent=5, classes=3, **options))
    torch.manual_seed(5)
    return gencore.create_model(name, **BIGGANS[name]), dict(zip(("G_ema", "D"), states, strict=True))


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}")


# --- what they compute -----------------------------------------------------------------------------------------------


def test_rosinality():
    content, model = rosinality(), stylegan2()
    assert load_pretrained(model, content, format="rosinality") == ["generator", "discriminator"]
    g, d = ({k: v.double() for k, v in content[key].items()} for key in ("g_ema", "d"))
    model.eval().double()
    z, images = torch.randn(4, 10).double(), torch.randn(8, 3, 16, 16).double()
    styles = model.generator.mapping(z)
    torch.testing.assert_close(styles[:, 0], published.rosinality_map(g, z), rtol=1e-6, atol=1e-7)
    styles = torch.randn_like(styles)  # a style of its own for every layer, so that none can be mistaken
    torch.testing.assert_close(
        model.generator.synthesis(styles, CONST), published.rosinality_generate(g, styles), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        model.discriminator(images), published.rosinality_discriminate(d, images), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(model.generator.mapping.w_avg.float(), content["latent_avg"][0])


def test_genforce_progan():
    content = genforce("progan_256")
    model = gencore.create_model("progan_256", **SMALL)
    load_pretrained(model, content, format="genforce")
    g, d = ({k: v.double() for k, v in state.items()} for state in content.values())
    model.double()
    z, images = torch.randn(3, 10).double(), torch.randn(8, 3, 16, 16).double()
    torch.testing.assert_close(model(z), published.genforce_progan_generate(g, z), rtol=1e-6, atol=1e-6)
    wanted = published.genforce_discriminate(d, images, blur=False)
    torch.testing.assert_close(model.discriminator(images), wanted, rtol=1e-6, atol=1e-6)


def test_genforce_stylegan():
    content = genforce("stylegan_256")
    model = gencore.create_model("stylegan_256", **SMALL, **STYLED)
    load_pretrained(model, content, format="genforce")
    g, d = ({k: v.double() for k, v in state.items()} for state in content.values())
    model.double().eval()
    z, images = torch.randn(3, 10).double(), torch.randn(8, 3, 16, 16).double()
    wanted = published.genforce_stylegan_generate(g, z)
    torch.testing.assert_close(model(z, noise="const"), wanted, rtol=1e-5, atol=1e-5)
    wanted = published.genforce_discriminate(d, images, blur=True)
    torch.testing.assert_close(model.discriminator(images), wanted, rtol=1e-6, atol=1e-6)


def test_rosinality_without_an_average():
    content, model = rosinality(), stylegan2()
    del content["latent_avg"], content["d"]
    before = {k: v.clone() for k, v in model.discriminator.state_dict().items()}
    assert load_pretrained(model, content, format="rosinality") == ["generator"]
    z = torch.randn(20_000, 10)
    wanted = published.rosinality_map(content["g_ema"], z)
    average = model.generator.mapping.w_avg
    assert (average - wanted.mean(0)).norm() < 0.05 * wanted.std(0).norm()
    assert model.training
    assert_same(model.discriminator.state_dict(), before)


def test_rosinality_without_noise():
    """Files of before the noise was stored: the model's own stays."""
    content, model = rosinality(), stylegan2()
    content["g_ema"] = {k: v for k, v in content["g_ema"].items() if not k.startswith("noises.")}
    before = model.generator.synthesis.blocks["8"].conv0.noise_const.clone()
    load_pretrained(model, content, format="rosinality")
    assert torch.equal(model.generator.synthesis.blocks["8"].conv0.noise_const, before)
    assert torch.equal(model.generator.synthesis.blocks["4"].const, content["g_ema"]["input.input"][0])


@pytest.mark.parametrize("name", ["progan_256", "stylegan_256"])
def test_genforce_stages(name, tmp_path):
    """Halvings of the resolution, a fraction where one fades in."""
    content, styled = genforce(name), {} if name == "progan_256" else STYLED
    lod = "lod" if name == "progan_256" else "synthesis.lod"
    for value, stage in ((0.0, (16, 1.0)), (0.25, (16, 0.75)), (1.0, (8, 1.0)), (1.5, (8, 0.5)), (2.0, (4, 1.0))):
        content["generator_smooth"][lod] = content["discriminator"]["lod"] = torch.tensor(value)
        model = gencore.create_model(name, **SMALL, **styled)
        load_pretrained(model, content, format="genforce")
        assert model.discriminator.now() == stage
        assert [m.now() for m in model.generator.modules() if hasattr(m, "now")] == [stage]
        save_pretrained(model, tmp_path / "ours.pt", format="genforce")
        written = torch.load(tmp_path / "ours.pt", weights_only=True)
        assert written["generator_smooth"][lod] == written["discriminator"]["lod"] == value
    for value in (-1.0, 2.5, float("nan")):
        content["discriminator"]["lod"] = torch.tensor(value)
        with pytest.raises(RuntimeError, match=rf"discriminator: lod must be in \[0, 2\], got {value}"):
            load_pretrained(model, content, format="genforce")


@pytest.mark.parametrize("name", BIGGANS)
def test_biggan_pytorch(name):
    model, content = biggan(name)
    assert load_pretrained(model, content, format="biggan-pytorch") == ["generator", "discriminator"]
    g, d = ({k: v.double() for k, v in state.items()} for state in content.values())
    model.double()
    # Sigma in double precision: of vectors that are far from the singular ones it hangs on every digit.
    load_pretrained(model, {"G_ema": g, "D": d}, format="biggan-pytorch")
    generate, judge = (
        (published.biggan_deep_generate, published.biggan_deep_discriminate)
        if name == "biggan_deep_128"
        else (published.biggan_generate, published.biggan_discriminate)
    )
    z, y, images = model.sample_latent(3), torch.tensor([0, 2, 1]), torch.randn(3, 3, 32, 32).double()
    torch.testing.assert_close(model.eval()(z, y), generate(g, z, y), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(model.discriminator(images, y), judge(d, images, y), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", BIGGANS)
def test_biggan_pytorch_there_and_back(name, tmp_path):
    """A folder of files; what is written has their names, shapes and numbers, but u one iteration further."""
    model, content = biggan(name)
    (tmp_path / "theirs").mkdir()
    for key, state in content.items():
        torch.save(state, tmp_path / "theirs" / f"{key}.pth")
    assert load_pretrained(model, tmp_path / "theirs", format="biggan-pytorch") == ["generator", "discriminator"]
    save_pretrained(model, tmp_path / "ours", format="biggan-pytorch")
    for key, state in content.items():
        written = torch.load(tmp_path / "ours" / f"{key}.pth", weights_only=True)
        assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in state.items()}
        for k, v in state.items():
            if k.endswith("u0"):
                matrix = state[k.removesuffix("u0") + "weight"].flatten(1)
                v = torch.nn.functional.normalize(v @ matrix @ matrix.T)
            if not k.endswith("sv0"):
                torch.testing.assert_close(written[k], v, rtol=1e-4, atol=1e-5, msg=lambda m, k=k: f"{k}: {m}")
    assert (tmp_path / "ours" / "G.pth").exists()
    for key, part in (("G_ema", "generator"), ("D", "discriminator")):
        assert load_pretrained(model, tmp_path / "ours" / f"{key}.pth", format="biggan-pytorch") == [part]


def test_biggan_pytorch_norms_over_several_devices():
    model, content = biggan("biggan_128")
    plain, _ = biggan("biggan_128")
    load_pretrained(plain, content, format="biggan-pytorch")
    renamed = {f"module.{k.replace('.stored_', '.bn.stored_')}": v for k, v in content["G_ema"].items()}
    renamed["module.output_layer.0.bn.accumulation_counter"] = torch.ones(1)
    load_pretrained(model, {"G": renamed}, format="biggan-pytorch")
    assert_same(model.generator.state_dict(), plain.generator.state_dict())


def huggingface():
    options = {"classes": 3, "width": 8, "shared": 6, "latent": 6, "computed": 5}
    tables = {"resolution": 32, "generator": (4, 4, 2, 1), "discriminator": (1, 2, 4, 4), "attention": 16}
    shapes = published.huggingface_shapes([32, 32, 16, 8], latent=6, classes=3, attention=4, computed=5)
    return gencore.create_model("biggan_deep_128_released", **options, **tables), published.synthesize_biggan(shapes)


def test_huggingface(tmp_path):
    model, state = huggingface()
    torch.save(state, tmp_path / "pytorch_model.bin")
    before = {k: v.clone() for k, v in model.discriminator.state_dict().items()}
    assert load_pretrained(model, tmp_path, format="huggingface") == ["generator"]
    assert_same(model.discriminator.state_dict(), before)
    state = {k: v.double() for k, v in state.items()}
    model.double().eval()
    z, y = model.sample_latent(3), torch.tensor([0, 2, 1])
    torch.testing.assert_close(model(z, y), published.huggingface_generate(state, z, y), rtol=1e-7, atol=1e-7)


def test_huggingface_there_and_back(tmp_path):
    model, state = huggingface()
    load_pretrained(model, state, format="huggingface")
    save_pretrained(model, tmp_path / "ours", format="huggingface")
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["pytorch_model.bin"]
    written = torch.load(tmp_path / "ours" / "pytorch_model.bin", weights_only=True)
    # Of the statistics, those of one threshold are known.
    state = {k: v[50:].expand(51, -1) if "running_" in k else v for k, v in state.items()}
    assert_same(written, state)
    with pytest.raises(RuntimeError, match="none of pytorch_model; it has "):
        load_pretrained(model, tmp_path, format="huggingface")


def test_biggan_of_another_resolution(tmp_path):
    _, content = biggan("biggan_128")
    smaller = {"generator": (4, 2, 1), "discriminator": (1, 2, 4), "resolution": 16, "attention": 8}
    other = gencore.create_model("biggan_128", **BIGGANS["biggan_128"] | smaller)
    with pytest.raises(RuntimeError) as caught:
        load_pretrained(other, content, format="biggan-pytorch")
    assert "G_ema: blocks.0.0.conv1.weight must be (16, 32, 3, 3), got (32, 32, 3, 3)" in str(caught.value)
    assert "G_ema: blocks.2.0.conv_sc.weight (8, 16, 1, 1) is left over" in str(caught.value)
    with pytest.raises(RuntimeError, match="none of G_ema, G, D"):
        load_pretrained(other, tmp_path, format="biggan-pytorch")


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "format", "content"),
    [
        ("stylegan2_256", STYLED, "rosinality", rosinality()),
        ("progan_256", {}, "genforce", genforce("progan_256")),
        ("stylegan_256", STYLED, "genforce", genforce("stylegan_256")),
    ],
)
def test_round_trip(name, options, format, content, tmp_path):
    """Their file, loaded and written again, has their keys, their shapes and their numbers."""
    torch.save(content, tmp_path / "theirs.pt")
    model = gencore.create_model(name, **SMALL, **options)
    load_pretrained(model, tmp_path / "theirs.pt", format=format)
    save_pretrained(model, tmp_path / "ours.pt", format=format)
    written = torch.load(tmp_path / "ours.pt", weights_only=True)
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(written[key].flatten(), value.flatten())
        else:
            assert_same(written[key], value)


def test_the_average_is_written_beside_the_weights(tmp_path):
    model, averaged = stylegan2(), stylegan2()
    with torch.no_grad():
        averaged.generator.synthesis.blocks["4"].const.fill_(3)
    save_pretrained(model, tmp_path / "a.pt", format="rosinality", average=averaged.generator)
    fresh = stylegan2()
    load_pretrained(fresh, tmp_path / "a.pt", format="rosinality")
    assert (fresh.generator.synthesis.blocks["4"].const == 3).all()
    load_pretrained(fresh, tmp_path / "a.pt", format="rosinality", average=False)
    assert_same(fresh.generator.state_dict(), model.generator.state_dict())


def test_files_of_training_scripts(tmp_path):
    """With arguments of the command line in them, and names as of compiled and wrapped modules."""
    content = rosinality() | {"args": argparse.Namespace(lr=0.002, size=16)}
    content["d"] = {f"module.{k}": v for k, v in content["d"].items()}
    torch.save(content, tmp_path / "550000.pt")
    model, wanted = stylegan2(), stylegan2()
    load_pretrained(model, tmp_path / "550000.pt", format="rosinality")
    load_pretrained(wanted, rosinality() | {"latent_avg": content["latent_avg"]}, format="rosinality")
    assert_same(model.state_dict(), wanted.state_dict())


# --- pickles of stylegan2-ada-pytorch --------------------------------------------------------------------------------


def ada_pickle(content, protocol=3):
    """The bytes of a snapshot: each network a persistent object that carries its class's source code."""
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = lambda meta: None
    module._reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    module._reconstruct_persistent_obj.__qualname__ = module._reconstruct_persistent_obj.__name__ = (
        "_reconstruct_persistent_obj"
    )

    class Persistent:
        def __init__(self, name, attributes):
            self.name, self.attributes = name, attributes

        def __reduce__(self):
            source = "import os\nos.environ['GENCORE_TEST_PWNED'] = '1'\n"
            meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.name}
            return module._reconstruct_persistent_obj, (meta | {"state": self.attributes},)

    def build(state, name):
        own = {k: v for k, v in state.items() if "." not in k}
        buffers = {k: v for k, v in own.items() if k in ("w_avg", "noise_const", "resample_filter")}
        children = {}
        for key, value in state.items():
            if "." in key:
                child, _, rest = key.partition(".")
                children.setdefault(child, {})[rest] = value
        return Persistent(
            name,
            {
                "training": False,
                "_parameters": {k: torch.nn.Parameter(v) for k, v in own.items() if k not in buffers} | {"none": None},
                "_buffers": buffers,
                "_non_persistent_buffers_set": set(),
                "_modules": {k: build(v, f"{name}.{k}") for k, v in children.items()},
                "_init_kwargs": {"z_dim": 10, "dtype": np.dtype("float32"), "gain": np.float32(2)},
            },
        )

    sys.modules["torch_utils"], sys.modules["torch_utils.persistence"] = types.ModuleType("torch_utils"), module
    try:
        networks = {k: build(v, k) for k, v in content.items()}
        return pickle.dumps(networks | {"augment_pipe": None, "training_set_kwargs": {"path": "x"}}, protocol=protocol)
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


def stylegan2_ada():
    g, d = ada_states(16, WIDTHS, 10, 3)
    last = {k: v if k.endswith("resample_filter") else v + 1 for k, v in g.items()}
    return {"G": last, "D": d, "G_ema": g}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_stylegan2_ada(protocol, tmp_path):
    content, model = stylegan2_ada(), stylegan2()
    (tmp_path / "network-snapshot.pkl").write_bytes(ada_pickle(content, protocol))
    found = load_pretrained(model, tmp_path / "network-snapshot.pkl", format="stylegan2-ada")
    assert found == ["generator", "discriminator"]
    assert "GENCORE_TEST_PWNED" not in os.environ  # the source code in the file was not run
    g, d = ({k: v.double() for k, v in content[key].items()} for key in ("G_ema", "D"))
    model.eval().double()
    z, images = torch.randn(4, 10).double(), torch.randn(8, 3, 16, 16).double()
    styles = model.generator.mapping(z, truncation=0.6)
    torch.testing.assert_close(styles[:, 0], ada_map(g, z, truncation=0.6), rtol=1e-6, atol=1e-7)
    styles = torch.randn_like(styles)  # a style of its own for every layer, so that none can be mistaken
    torch.testing.assert_close(model.generator.synthesis(styles, CONST), ada_generate(g, styles), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.discriminator(images), ada_discriminate(d, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["snapshot.PKL", "snapshot", "snapshot.pickle"])
def test_a_pickle_is_known_by_its_content(name, tmp_path):
    (tmp_path / name).write_bytes(ada_pickle(stylegan2_ada()))
    assert len(load_pretrained(stylegan2(), tmp_path / name, format="stylegan2-ada")) == 2


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_of_torch_is_known_by_its_content(zipped, tmp_path):
    torch.save(rosinality(), tmp_path / "a.pkl", _use_new_zipfile_serialization=zipped)
    assert len(load_pretrained(stylegan2(), tmp_path / "a.pkl", format="rosinality")) == 2


def test_stylegan2_ada_there_and_back(tmp_path):
    content, model = stylegan2_ada(), stylegan2()
    (tmp_path / "theirs.pkl").write_bytes(ada_pickle(content))
    load_pretrained(model, tmp_path / "theirs.pkl", format="stylegan2-ada", average=False)
    averaged = stylegan2()
    load_pretrained(averaged, tmp_path / "theirs.pkl", format="stylegan2-ada")
    save_pretrained(model, tmp_path / "ours.pt", format="stylegan2-ada", average=averaged.generator)
    written = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert written.keys() == content.keys()
    for key, state in content.items():
        assert_same(written[key], state)


class Malicious:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "system"), (eval, "eval"), (exec, "exec"), (getattr, "getattr"), (torch.load, "load")],
)
def test_a_malicious_pickle_is_refused(function, name, protocol, tmp_path):
    path = tmp_path / "evil.pkl"
    canary = tmp_path / "canary"
    argument = {"system": f"touch {canary}", "load": str(canary)}.get(name, f"open({str(canary)!r}, 'w')")
    path.write_bytes(pickle.dumps({"G": Malicious(function, argument)}, protocol=protocol))
    with pytest.raises(
        RefusedPickle, match=rf"evil.pkl: refused: it wants to use [\w.]*\.{name}, .* nothing of it was"
    ):
        load_pretrained(stylegan2(), path, format="stylegan2-ada")
    assert not canary.exists()


def test_a_malicious_storage_is_refused(tmp_path):
    """Tensors hide a file of their own in the pickle; that one is read without running anything, too."""
    canary = tmp_path / "canary"
    inner = io.BytesIO()
    torch.save(Malicious(os.system, f"touch {canary}"), inner)
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"G": Malicious(torch.storage._load_from_bytes, inner.getvalue())}))
    with pytest.raises(RefusedPickle):
        read_pickle(path)
    assert not canary.exists()


def build(name, state):
    """Pickle's instructions to set the state of what has this name, and to leave the stack as it was."""
    module, _, name = name.rpartition(".")
    return f"c{module}\n{name}\n".encode() + pickle.dumps(state, protocol=2)[2:-1] + b"b0"


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("torch._utils._rebuild_tensor_v2", (None, {"__defaults__": ()})),
        ("torch._utils._rebuild_parameter", {"attribute": 1}),
        ("dnnlib.util.EasyDict", (None, {"__len__": 1})),
        ("builtins.set", {}),
    ],
)
def test_a_pickle_cannot_change_what_the_process_shares(name, state, where, tmp_path):
    """Hidden in a file whose networks are as they should be."""
    save_pretrained(stylegan2(), tmp_path / "plain.pt", format="stylegan2-ada")
    networks = ada_pickle(torch.load(tmp_path / "plain.pt", weights_only=True))
    poison, path = build(name, state), tmp_path / "evil.pkl"
    path.write_bytes(networks[:2] + poison + networks[2:] if where == "before" else networks[:-1] + poison + b".")
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    try:
        with pytest.raises(
            RefusedPickle, match=rf"refused: it wants to set attributes of (_Dict|{name.split('.')[-1]})"
        ):
            load_pretrained(stylegan2(), path, format="stylegan2-ada")
        assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults
    finally:
        torch._utils._rebuild_tensor_v2.__defaults__ = defaults
        vars(torch._utils._rebuild_parameter).clear()
    torch.load(tmp_path / "plain.pt", weights_only=True)


def test_a_pickle_cannot_set_attributes_of_tensors_and_networks(tmp_path):
    hooks = (False, None, {0: None})
    for content in (ada_pickle({"G": {"a": torch.ones(3)}}), pickle.dumps(torch.ones(3), protocol=3)):
        path = tmp_path / "evil.pkl"
        path.write_bytes(content[:-1] + pickle.dumps(hooks, protocol=2)[2:-1] + b"b.")
        with pytest.raises(RefusedPickle, match="it wants to set attributes of"):
            read_pickle(path)


@pytest.mark.parametrize("content", [b"", b"not a pickle", ada_pickle({"G": {"a": torch.ones(3)}})[:-30]])
def test_damaged_pickles(content, tmp_path):
    path = tmp_path / "damaged.pkl"
    path.write_bytes(content)
    with pytest.raises(RefusedPickle, match=r"damaged.pkl is no pickle of networks"):
        read_pickle(path)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_malicious_file_of_torch_is_refused(how, tmp_path):
    """Its own message would tell to load the file without the protection."""
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    content = {"g": Malicious(os.system, f"touch {canary}")}
    torch.save(content, path) if how == "torch.save" else path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(RefusedPickle, match=r"evil.pt: refused: it wants to use posix.system, .* nothing of it"):
        load_pretrained(stylegan2(), path, format="rosinality")
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"PK\x03\x04 cut off"])
def test_damaged_files_of_torch(content, tmp_path):
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    with pytest.raises(RefusedPickle, match=r"damaged.pt is no file of weights"):
        load_pretrained(stylegan2(), path, format="rosinality")


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_another_resolution():
    model = stylegan2(resolution=8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError) as caught:
        load_pretrained(model, rosinality(), format="rosinality")
    message = str(caught.value)
    assert "do not fit a StyleGAN2 of StyleGAN2Config(resolution=8," in message
    assert "g_ema: to_rgbs.1.conv.weight (1, 3, 8, 1, 1) is left over" in message
    assert "d: convs.0.0.weight must be (12, 3, 1, 1), got (8, 3, 1, 1)" in message
    assert_same(model.state_dict(), before)  # the part that fits was not loaded either
    with pytest.raises(RuntimeError, match=r"g_ema: convs.2.conv.weight is missing, wanted \(1, 8, 12, 3, 3\)"):
        load_pretrained(stylegan2(), rosinality(8), format="rosinality")


@pytest.mark.parametrize(
    ("key", "name", "change", "message"),
    [
        (None, "latent_avg", lambda t: torch.randn(7), r"latent_avg must be a .* \[10\], got \(7,\) of torch.float32"),
        (None, "latent_avg", lambda t: "x", r"latent_avg must be a floating-point Tensor \[10\], got a str"),
        ("g_ema", 3, lambda t: torch.ones(2), "g_ema: the key 3 must be a str"),
        ("d", "final_linear.0.bias", lambda t: t + 1j, "final_linear.0.bias must be floating point, got .*complex64"),
        ("d", "final_linear.0.bias", lambda t: t.long(), "final_linear.0.bias must be floating point, got torch.int64"),
    ],
)
def test_what_are_no_weights(key, name, change, message):
    model, content = stylegan2(), rosinality()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = content if key is None else content[key]
    state[name] = change(state.get(name))
    with pytest.raises(RuntimeError, match=message):
        load_pretrained(model, content, format="rosinality")
    assert_same(model.state_dict(), before)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="format must be one of stylegan2-ada, rosinality for a StyleGAN2; got 'npz'"):
        load_pretrained(stylegan2(), {}, format="npz")
    with pytest.raises(RuntimeError, match="none of g_ema, g, d; it has weights"):
        load_pretrained(stylegan2(), {"weights": 1}, format="rosinality")
    with pytest.raises(RuntimeError, match="g_ema: wanted a state_dict, got a Tensor"):
        load_pretrained(stylegan2(), {"g_ema": torch.ones(3)}, format="rosinality")
    with pytest.raises(RuntimeError, match="g_ema: a must be a Tensor, got a int"):
        load_pretrained(stylegan2(), {"g_ema": {"a": 3}}, format="rosinality")
    for name in ("none.pkl", "none.pt"):
        with pytest.raises(FileNotFoundError):
            load_pretrained(stylegan2(), tmp_path / name, format="stylegan2-ada")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(RefusedPickle, match=r"list.pt holds a list, wanted a dictionary"):
        load_pretrained(stylegan2(), tmp_path / "list.pt", format="rosinality")
