"""Instance norm, conditional batch norm and AdaIN as layers, and the helpers that choose batch norm's statistics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as TF
from torch import nn

import gencore.functional
import gencore.nn
from gencore.nn.utils.statistics import batch_statistics, standing_statistics

SHAPES = {1: (4, 5, 7), 2: (4, 5, 6, 3), 3: (3, 5, 2, 3, 4)}


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"affine": True}, {"track_running_stats": True, "momentum": 0.3}, {"affine": True, "eps": 0.1}],
    ids=str,
)
def test_instance_norm_behaves_as_torch_nn(dim, kwargs):
    torch.manual_seed(0)
    ours, theirs = (getattr(module, f"InstanceNorm{dim}d")(5, **kwargs) for module in (gencore.nn, torch.nn))
    if ours.affine:
        nn.init.uniform_(ours.weight, 0.5, 2), nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    for training in (True, True, False):
        ours.train(training), theirs.train(training)
        x = torch.randn(SHAPES[dim]) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(ours(x[0]), theirs(x[0]), rtol=1e-5, atol=2e-6)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    assert repr(ours) == repr(theirs)


def test_instance_norm_takes_statistics_of_another_precision():
    torch.manual_seed(0)
    ours, theirs = (module.InstanceNorm2d(3, track_running_stats=True).double() for module in (gencore.nn, torch.nn))
    x = torch.randn(2, 3, 5, 4) * 2 + 1
    for training in (True, False):
        ours.train(training), theirs.train(training)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-5, atol=1e-6)


def test_instance_norm_activation_and_residual():
    torch.manual_seed(0)
    layer = gencore.nn.InstanceNorm2d(5, affine=True, activation="leaky_relu", negative_slope=0.2)
    x, residual = torch.randn(2, *SHAPES[2])
    expected = TF.leaky_relu(TF.instance_norm(x, weight=layer.weight, bias=layer.bias) + residual, 0.2)
    torch.testing.assert_close(layer(x, residual), expected, rtol=1e-5, atol=2e-6)
    assert "activation='leaky_relu', negative_slope=0.2" in repr(layer)


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize("batch", [1, 2])
def test_instance_norm_reads_gradients_in_either_layout(impl, batch):
    """PyTorch's own does not where there is one image, and a float64 oracle built on it agreed with nobody."""
    x, grad = torch.randn(batch, 16, 6, 5, dtype=torch.float64), torch.randn(batch, 16, 6, 5, dtype=torch.float64)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.clone().contiguous(memory_format=layout).requires_grad_()
        y = gencore.functional.instance_norm_act(leaf, impl=impl)
        results += torch.autograd.grad(y, leaf, grad.contiguous(memory_format=layout))
    torch.testing.assert_close(*results)


def test_instance_norm_refuses():
    with pytest.raises(ValueError, match=r"expected 5 channels \(num_features\), got \(2, 4, 3, 3\)"):
        gencore.nn.InstanceNorm2d(5)(torch.zeros(2, 4, 3, 3))
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        gencore.nn.InstanceNorm2d(5)(torch.zeros(2, 5, 1, 1))
    with pytest.raises(ValueError, match="expected 3D or 4D input"):
        gencore.nn.InstanceNorm2d(5)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="activation must be one of"):
        gencore.nn.InstanceNorm2d(5, activation="mish")


def classes_norm(classes=3, channels=5, **options):
    layer = gencore.nn.ConditionalBatchNorm2d(
        channels, nn.Embedding(classes, channels), nn.Embedding(classes, channels), **options
    )
    assert {"gain.weight", "bias.weight", "running_mean", "running_var"} < set(layer.state_dict())
    return layer


def test_conditional_batch_norm_of_classes():
    torch.manual_seed(0)
    layer, plain = classes_norm(activation="relu"), nn.BatchNorm2d(5, affine=False)
    x, y = torch.randn(4, 5, 3, 3), torch.tensor([2, 0, 0, 1])
    for training in (True, True, False):
        layer.train(training), plain.train(training)
        gain, bias = layer.gain(y)[:, :, None, None], layer.bias(y)[:, :, None, None]
        torch.testing.assert_close(layer(x, y), TF.relu(plain(x) * gain + bias), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(layer.running_var, plain.running_var)
    assert layer.num_batches_tracked == 2
    with pytest.raises(IndexError):
        layer(x, torch.tensor([3, 0, 0, 1]))


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        ([0, 3], IndexError, r"ConditionalBatchNorm2d: condition must be classes in 0..2, got 3"),
        ([-1, 0], IndexError, r"condition must be classes in 0..2, got -1"),
        ([0.0, 1.0], RuntimeError, r"condition must be int64 or int32, got torch.float32"),
        ([0, 1, 2], RuntimeError, r"gain must have shape \(2, 5\), got \(3, 5\)"),
    ],
)
def test_conditions_that_are_no_classes(condition, error, message):
    with pytest.raises(error, match=message):
        classes_norm()(torch.randn(2, 5, 3, 3), torch.tensor(condition))


def test_conditional_batch_norm_of_vectors():
    torch.manual_seed(0)
    layer = gencore.nn.ConditionalBatchNorm2d(
        5, nn.Linear(7, 5, bias=False), nn.Linear(7, 5, bias=False), gain_offset=1.0
    )
    x, condition = torch.randn(4, 5, 3, 3), torch.randn(4, 7)
    plain = TF.batch_norm(x, None, None, training=True)
    expected = plain * (1 + layer.gain(condition))[:, :, None, None] + layer.bias(condition)[:, :, None, None]
    torch.testing.assert_close(layer(x, condition), expected, rtol=1e-5, atol=2e-6)


def test_adain():
    torch.manual_seed(0)
    layer = gencore.nn.AdaIN(5, 7, activation="leaky_relu", negative_slope=0.2)
    x, style = torch.randn(4, 5, 3, 3), torch.randn(4, 7)
    scale, bias = layer.style(style)[:, :, None, None].chunk(2, 1)
    torch.testing.assert_close(
        layer(x, style), TF.leaky_relu(TF.instance_norm(x) * (scale + 1) + bias, 0.2), rtol=1e-5, atol=2e-6
    )


# --- which statistics ------------------------------------------------------------------------------------------------


def test_standing_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(gencore.nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3, momentum=0.7)).eval()
    batches = [torch.randn(8, 3, 4, 4) * 3 + 2 for _ in range(5)]
    source = iter(batches)
    standing_statistics(model, lambda: next(source), passes=5)
    torch.testing.assert_close(model[0].running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    variances = torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches])
    torch.testing.assert_close(model[0].running_var, variances.mean(0))
    assert not any(m.training for m in model.modules())
    assert [model[0].momentum, model[2].momentum] == [0.1, 0.7]
    with pytest.raises(ValueError, match="passes must be at least 1, got 0"):
        standing_statistics(model, lambda: batches[0], passes=0)


def test_standing_statistics_leave_the_mode_alone_on_failure():
    model = nn.Sequential(gencore.nn.BatchNorm2d(3)).eval()
    with pytest.raises(RuntimeError):
        standing_statistics(model, lambda: torch.zeros(2, 4, 3, 3))
    assert not model[0].training
    assert model[0].momentum == 0.1


def test_batch_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(gencore.nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3)).eval()
    x = torch.randn(2, 3, 4, 4) * 3 + 2
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with batch_statistics(model):
        y = model(x)
    torch.testing.assert_close(y, TF.batch_norm(TF.batch_norm(x, None, None, training=True), None, None, training=True))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not torch.allclose(model(x), y, atol=0.1)
    assert not model[0].training
    assert model[0].track_running_stats


def test_repr_shows_the_settings():
    conditional = gencore.nn.ConditionalBatchNorm2d(
        3, nn.Linear(2, 3), nn.Linear(2, 3), gain_offset=1.0, eps=1e-4, activation="leaky_relu", negative_slope=0.2
    )
    settings = "3, gain_offset=1.0, eps=0.0001, momentum=0.1, track_running_stats=True"
    assert f"{settings}, activation='leaky_relu', negative_slope=0.2" in repr(conditional)
    assert "eps=0.001, activation='relu'" in repr(gencore.nn.AdaIN(3, 4, eps=1e-3, activation="relu"))
