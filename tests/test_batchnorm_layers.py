"""The layers gencore.nn.BatchNorm1d/2d/3d beside torch.nn's."""

from __future__ import annotations

import inspect

import pytest
import torch

import gencore.nn

SHAPES = {1: (6, 5, 7), 2: (4, 5, 6, 3), 3: (3, 5, 2, 3, 4)}


def twins(dim: int, **kwargs):
    ours, theirs = (getattr(module, f"BatchNorm{dim}d")(5, **kwargs) for module in (gencore.nn, torch.nn))
    if ours.affine:
        with torch.no_grad():
            ours.weight.uniform_(0.5, 2)
            ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}, {"eps": 0.1, "momentum": 0.5}],
    ids=str,
)
def test_behaves_as_torch_nn(dim, kwargs):
    torch.manual_seed(0)
    ours, theirs = twins(dim, **kwargs)
    for training in (True, True, True, False):
        ours.train(training), theirs.train(training)
        x = torch.randn(SHAPES[dim]) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=2e-6)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm3d", "InstanceNorm2d", "SyncBatchNorm"])
def test_arguments_of_torch_nn_by_position_and_without_a_bias(name):
    ours, theirs = getattr(gencore.nn, name), getattr(torch.nn, name)
    group = (None,) if name == "SyncBatchNorm" else ()
    for layer in (ours, theirs):
        made = layer(3, 1e-4, 0.2, True, True, *group, "meta", torch.float64)
        assert (made.weight.device.type, made.weight.dtype) == ("meta", torch.float64)
    if "bias" not in inspect.signature(theirs).parameters:
        pytest.skip("this PyTorch has no bias=")
    layers = [layer(5, affine=True, bias=False) for layer in (ours, theirs)]
    assert [layer.bias for layer in layers] == [None, None]
    x = torch.randn(SHAPES[2] if name in ("InstanceNorm2d", "SyncBatchNorm") else SHAPES[int(name[-2])])
    if name != "SyncBatchNorm":  # PyTorch's runs on a GPU alone
        torch.testing.assert_close(layers[0](x), layers[1](x), rtol=1e-5, atol=2e-6)
    layers[0](x).sum().backward()


def test_activation_and_residual():
    torch.manual_seed(0)
    ours, theirs = twins(2, affine=True)
    ours.activation, ours.negative_slope = "leaky_relu", 0.2
    x, residual = torch.randn(2, *SHAPES[2])
    expected = torch.nn.functional.leaky_relu(theirs(x) + residual, 0.2)
    torch.testing.assert_close(ours(x, residual), expected, rtol=1e-5, atol=2e-6)


def test_repr_is_torch_nn_s_until_something_is_fused():
    assert repr(gencore.nn.BatchNorm2d(7)) == repr(torch.nn.BatchNorm2d(7))
    assert "activation='leaky_relu', negative_slope=0.2" in repr(
        gencore.nn.BatchNorm2d(7, activation="leaky_relu", negative_slope=0.2)
    )


def test_bad_input():
    with pytest.raises(ValueError, match="expected 4D input"):
        gencore.nn.BatchNorm2d(5)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="activation must be one of"):
        gencore.nn.BatchNorm2d(5, activation="mish")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        gencore.nn.BatchNorm1d(5)(torch.zeros(1, 5))
    with pytest.raises(RuntimeError, match=r"weight must have shape \(4,\), got \(5,\)"):
        gencore.nn.BatchNorm1d(5)(torch.zeros(2, 4))
