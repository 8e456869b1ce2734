"""``gencore.patch``: somebody else's model on gencore's layers, and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import gencore
from gencore.patching import DROP_INS


class Theirs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 4, 2, 1)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class TheirConv(nn.Conv2d):
    """With something of its own, which must not be lost."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


def test_every_drop_in_has_the_state_that_patch_gives_it() -> None:
    assert {nn.Conv2d, nn.ConvTranspose3d, nn.Linear, nn.BatchNorm1d} <= set(DROP_INS)
    arguments = {nn.Linear: (4, 4)}
    for original, drop_in in DROP_INS.items():
        sizes = (4,) if "Norm" in original.__name__ else arguments.get(original, (4, 4, 3))
        built, patched = drop_in(*sizes), gencore.patch(original(*sizes))
        assert type(patched) is drop_in
        assert set(vars(patched)) == set(vars(built)), original
        for name in ("activation", "negative_slope", "impl"):
            assert vars(patched)[name] == vars(built)[name], (original, name)


def test_the_same_results_and_training() -> None:
    torch.manual_seed(0)
    plain = Theirs().double()
    patched = gencore.patch(copy.deepcopy(plain))
    assert [type(m).__module__.split(".")[0] for m in patched.body] == ["gencore", "gencore", "torch", "gencore"]
    assert list(patched.state_dict()) == list(plain.state_dict())
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    for model in (plain, patched):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for (name, a), b in zip(patched.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(patched.eval()(x), plain.eval()(x))


def test_in_place_with_hooks_and_back() -> None:
    model = Theirs()
    conv, seen = model.body[0], []
    conv.register_forward_hook(lambda *_: seen.append(1))
    assert gencore.patch(model, impl="reference") is model
    assert model.body[0] is conv
    assert conv.impl == "reference"
    model(torch.randn(2, 3, 4, 4))
    assert seen == [1]
    gencore.unpatch(model)
    assert type(conv) is nn.Conv2d
    assert not hasattr(conv, "impl")
    model(torch.randn(2, 3, 4, 4))
    assert seen == [1, 1]


def test_what_is_left_alone() -> None:
    derived = nn.Sequential(TheirConv(1, 1, 1), nn.MaxPool2d(2))
    gencore.patch(derived)
    assert [type(m) for m in derived] == [TheirConv, nn.MaxPool2d]
    fused = gencore.nn.Conv2d(1, 1, 1, activation="relu")
    gencore.unpatch(fused)
    assert type(fused) is gencore.nn.Conv2d, "its activation would be lost"


def test_a_parametrised_layer_keeps_its_parametrisation() -> None:
    layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)).eval()
    x = torch.randn(1, 3, 5, 5)
    expected, state = layer(x), list(layer.state_dict())
    patched = gencore.patch(nn.Sequential(layer))
    assert isinstance(layer, gencore.nn.Conv2d)
    torch.testing.assert_close(patched(x), expected)
    torch.testing.assert_close(copy.deepcopy(patched)(x), expected)
    assert list(layer.state_dict()) == state
    gencore.unpatch(patched)
    assert not isinstance(layer, gencore.nn.Conv2d)
    torch.testing.assert_close(patched(x), expected)
    nn.utils.parametrize.remove_parametrizations(gencore.patch(layer), "weight")
    assert type(layer) is gencore.nn.Conv2d
    torch.testing.assert_close(layer(x), expected)


def test_an_unknown_implementation() -> None:
    with pytest.raises(ValueError, match="patch: impl must be one of auto, reference, cpu, triton, cuda; got 'gpu'"):
        gencore.patch(Theirs(), impl="gpu")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16, torch.float64])
def test_layers_of_any_dtype_keep_working(dtype: torch.dtype) -> None:
    for layer, x in (
        (nn.Conv2d(4, 4, 3, dtype=dtype), torch.randn(1, 4, 5, 5, dtype=dtype)),
        (nn.ConvTranspose1d(4, 4, 3, dtype=dtype), torch.randn(1, 4, 5, dtype=dtype)),
        (nn.Linear(4, 4, dtype=dtype), torch.randn(1, 4, dtype=dtype)),
    ):
        wanted = layer(x)
        torch.testing.assert_close(gencore.patch(layer)(x), wanted)
