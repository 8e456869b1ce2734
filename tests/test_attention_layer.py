"""``SelfAttention2d``: the released codes' results, loaders, maps for chosen queries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from gencore.nn import SelfAttention2d


def released(x: Tensor, theta: Tensor, phi: Tensor, g: Tensor, o: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """The block as SAGAN's and BigGAN's code computes it, and its matrix of weights ``[B, N, M]``."""
    b, _, h, w = x.shape
    queries = TF.conv2d(x, theta).view(b, -1, h * w)
    keys = TF.max_pool2d(TF.conv2d(x, phi), 2).view(b, -1, h * w // 4)
    values = TF.max_pool2d(TF.conv2d(x, g), 2).view(b, -1, h * w // 4)
    beta = torch.softmax(torch.bmm(queries.transpose(1, 2), keys), -1)
    result = torch.bmm(values, beta.transpose(1, 2)).view(b, -1, h, w)
    return gamma * TF.conv2d(result, o) + x, beta


def checkpoint(c: int, former: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Keys of BigGAN-PyTorch, or of Hugging Face, and the four normalised weights."""
    state, normal = {"a.gamma": torch.full((1,) if former else (), 0.7)}, []
    shapes = [(c // 8, c), (c // 8, c), (c // 2, c), (c, c // 2)]
    names = [f"snconv1x1_{n}" for n in ("theta", "phi", "g", "o_conv")] if former else ["theta", "phi", "g", "o"]
    for name, shape in zip(names, shapes, strict=True):
        weight, u = torch.randn(*shape, 1, 1), torch.randn(shape[0])
        matrix = weight.flatten(1)
        v = TF.normalize(matrix.T @ u, dim=0)
        end = TF.normalize(matrix @ v, dim=0)
        normal.append(weight / (end @ matrix @ v))
        values = {"weight_orig": weight, "weight_u": end, "weight_v": v} if former else {
            "weight": weight, "u0": u[None], "sv0": torch.ones(1)}  # fmt: skip
        state.update({f"a.{name}.{k}": x for k, x in values.items()})
    return state, normal


@pytest.mark.parametrize("former", [False, True], ids=["biggan", "huggingface"])
@pytest.mark.parametrize("normalised", [True, False])
def test_loaders_give_the_released_result(former: bool, normalised: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 6, 8)
    state, weights = checkpoint(16, former)
    layer = SelfAttention2d(16, spectral_norm=normalised).eval()
    (layer.load_huggingface if former else layer.load_biggan)(state, "a.")
    y, beta = released(x, *weights, torch.tensor(0.7))
    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-4)
    positions = torch.tensor([[0, 0], [3, 7], [5, 2]])
    maps = layer.attention_maps(x, positions)
    assert maps.shape == (2, 3, 3, 4)
    wanted = beta[:, positions[:, 0] * 8 + positions[:, 1]]
    torch.testing.assert_close(maps.flatten(2), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("former", [False, True], ids=["biggan", "huggingface"])
def test_writers_give_the_released_keys(former: bool) -> None:
    torch.manual_seed(0)
    state, _ = checkpoint(16, former)
    layer, other = SelfAttention2d(16), SelfAttention2d(16)
    (layer.load_huggingface if former else layer.load_biggan)(state, "a.")
    written = (layer.to_huggingface if former else layer.to_biggan)("a.")
    assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in state.items()}
    for key, value in written.items():
        if key.endswith(".u0"):
            matrix = state[key.removesuffix("u0") + "weight"].flatten(1)
            torch.testing.assert_close(value, TF.normalize(state[key] @ matrix @ matrix.T))
        else:
            assert torch.equal(value, state[key]), key
    (other.load_huggingface if former else other.load_biggan)(written, "a.")
    for (key, a), b in zip(other.state_dict().items(), layer.state_dict().values(), strict=True):
        if former or not key.endswith(("_u", "_v")):
            assert torch.equal(a, b), key
    plain = SelfAttention2d(16, spectral_norm=False)
    assert torch.equal(plain.to_biggan("b.")["b.phi.weight"], plain.key.weight)


def test_starts_as_the_identity() -> None:
    x = torch.randn(2, 16, 5, 7).requires_grad_()
    layer = SelfAttention2d(16)
    y = layer(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert layer.gamma.grad is not None
    assert layer.gamma.grad.abs() > 0
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_the_papers_layer() -> None:
    layer = SelfAttention2d(64, pool=False, value_reduction=8, spectral_norm=False)
    assert [tuple(p.shape) for p in layer.parameters()] == [
        (), (8, 64, 1, 1), (8, 64, 1, 1), (8, 64, 1, 1), (64, 8, 1, 1)]  # fmt: skip
    assert layer.attention_maps(torch.randn(1, 64, 3, 3), torch.zeros(1, 2, dtype=torch.int64)).shape == (1, 1, 3, 3)


def test_keys_of_the_state_dict() -> None:
    layer = SelfAttention2d(16)
    assert "query.parametrizations.weight.original" in layer.state_dict()
    other = SelfAttention2d(16)
    other.load_state_dict(layer.state_dict())
    nn.init.ones_(layer.gamma), nn.init.ones_(other.gamma)
    x = torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(layer.eval()(x), other.eval()(x))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="reduction must be between 1 and channels=4, got 8"):
        SelfAttention2d(4)
    layer, x = SelfAttention2d(8), torch.randn(1, 8, 4, 4)
    with pytest.raises(RuntimeError, match=r"integers of shape \[P, 2\]"):
        layer.attention_maps(x, torch.zeros(3, 2))
    with pytest.raises(IndexError, match="must lie in"):
        layer.attention_maps(x, torch.tensor([[0, 4]]))
    with pytest.raises(TypeError, match="positions must be a Tensor, got list"):
        layer.attention_maps(x, [[0, 1]])  # type: ignore[arg-type]
    for positions in (torch.zeros(3, 2, dtype=torch.complex64), torch.zeros(3, 2, dtype=torch.bool)):
        with pytest.raises(RuntimeError, match=r"integers of shape \[P, 2\]"):
            layer.attention_maps(x, positions)
    with pytest.raises(RuntimeError, match=r"x must have shape \[B, 8, H, W\], got \(1, 4, 4, 4\)"):
        layer.attention_maps(x[:, :4].expand(1, 4, 4, 4), torch.zeros(1, 2, dtype=torch.int64))


def test_maps_change_nothing_and_are_taken_in_float32() -> None:
    layer, x = SelfAttention2d(16), torch.randn(2, 16, 6, 6)
    positions, before = torch.tensor([[0, 5], [2, 1], [2, 1]]), [b.clone() for b in layer.buffers()]
    maps = layer.attention_maps(x, positions)
    for a, b in zip(layer.buffers(), before, strict=True):
        assert torch.equal(a, b)
    assert all(module.training for module in layer.modules())
    assert torch.equal(layer.attention_maps(x, positions.to(torch.uint8)), maps)
    assert layer.attention_maps(x, positions[:0]).shape == (2, 0, 3, 3)
    narrow = layer.bfloat16().attention_maps(x.bfloat16(), positions)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float().sum((2, 3)), torch.ones(2, 3), rtol=0, atol=9 * 2**-9)


def test_a_checkpoint_that_does_not_fit_loads_nothing() -> None:
    state, _ = checkpoint(16, False)
    layer = SelfAttention2d(16)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    for key, error in (("a.o.weight", KeyError), ("a.gamma", KeyError), ("a.g.u0", RuntimeError)):
        broken = dict(state)
        if error is KeyError:
            del broken[key]
        else:
            broken[key] = broken[key][:, :1]
        with pytest.raises(error):
            layer.load_biggan(broken, "a.")
        for name, value in layer.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_repr_shows_the_settings() -> None:
    assert repr(SelfAttention2d(32, 4, False, True, 1)).startswith(
        "SelfAttention2d(\n  32, reduction=4, pool=False, value_reduction=1\n"
    )
