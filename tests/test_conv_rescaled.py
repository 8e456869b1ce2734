"""``upscale2d_conv2d`` and ``conv2d_downscale2d``: which way they go, what they keep, and the layers on them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor, nn

import gencore
import gencore.functional as F
from gencore.extension import EXTENSION
from gencore.nn.utils.parametrizations import spectral_norm, spectral_norm_model
from gencore.ops import conv_packing, conv_rescaled

needs_kernels = pytest.mark.skipif(not EXTENSION.loaded, reason="the C++ extension is not built")
UP, DOWN = F.upscale2d_conv2d, F.conv2d_downscale2d


def _plain(function: object, x: Tensor, weight: Tensor) -> Tensor:
    if function is UP:
        return TF.conv2d(TF.interpolate(x, scale_factor=2.0, mode="nearest"), weight, None, 1, 1)
    return TF.avg_pool2d(TF.conv2d(x, weight, None, 1, 1), 2)


def _inputs(function: object, channels: int = 64, side: int = 16) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    side = side if function is UP else 2 * side
    return torch.randn(4, channels, side, side), torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5


@needs_kernels
@pytest.mark.parametrize("function", [UP, DOWN])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "side"), [(64, 16), (128, 16), (512, 12)])
def test_is_as_near_to_float64_as_the_two_ops(
    function: object, channels: int, side: int, layout: torch.memory_format
) -> None:
    x, weight = _inputs(function, channels, side)
    x = x.contiguous(memory_format=layout)
    many = function is DOWN and channels > 128 and x.is_contiguous()
    assert gencore.explain(function, x, weight).chosen == ("reference" if many else "cpu")
    grad = torch.randn_like(_plain(function, x, weight))
    values = []
    for run, dtype in ((lambda *t: _plain(function, *t), torch.float64), (function, torch.float32), (None, None)):
        run, dtype = run or (lambda *t: _plain(function, *t)), dtype or torch.float32
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight)]
        y = run(*leaves)
        values.append((y, *torch.autograd.grad(y, leaves, grad.to(dtype))))
    for exact, ours, theirs in zip(*values, strict=True):
        error, allowed = ((t.double() - exact).norm() for t in (ours, theirs))
        assert error <= 2 * allowed


@needs_kernels
@pytest.mark.parametrize("function", [UP, DOWN])
def test_goes_as_one_convolution_where_that_pays_and_says_why_elsewhere(function: object) -> None:
    x, weight = _inputs(function)
    assert gencore.explain(function, x, weight).chosen == "cpu"
    for reason, arguments in {
        "pixels are too few": (x[:1, :, :8, :8], weight),
        "pixels are too": (x[:, :, :2], weight),
        "24 channels": (x[:, :24], weight[:, :24]),
        "16 channels": (x, weight[:16]),
        "3x3 filters have minimal filtering, not 5x5": (x, torch.randn(64, 64, 5, 5)),
        "in float32 alone": (x.bfloat16(), weight.bfloat16()),
    }.items():
        answer = gencore.explain(function, *arguments)
        assert answer.chosen == "reference"
        assert reason in str(answer)
    if function is DOWN:
        wide = torch.randn(4, 160, 32, 32), torch.randn(64, 160, 3, 3)
        assert "over 160 channels of a contiguous image" in str(gencore.explain(function, *wide))


@needs_kernels
@pytest.mark.parametrize("function", [UP, DOWN])
def test_the_filter_is_kept_until_the_weight_changes(function: object, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    widen = conv_rescaled._widen

    def count(*args: object) -> Tensor:
        made.append(len(args))
        return widen(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(conv_rescaled, "_widen", count)
    x, weight = _inputs(function)
    for run in range(2):
        with torch.inference_mode(run == 0):
            torch.testing.assert_close(function(x, weight), _plain(function, x, weight), rtol=1e-4, atol=1e-4)
    assert len(made) == 1
    resting = [owner.tensor() for owner in conv_packing._at_rest.values()]
    whole = [t for t in resting if t is not None and t._base is None]  # a view is known by its owner
    assert any(t.numel() == 16 * 64 * 64 for t in whole)  # so that the filter is not hashed whole at every call
    weight.data.mul_(2)
    torch.testing.assert_close(function(x, weight), _plain(function, x, weight), rtol=1e-4, atol=1e-4)
    assert len(made) == 2
    weight.requires_grad_()
    function(x, weight).sum().backward()
    wanted = torch.autograd.grad(_plain(function, x, weight).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, wanted, rtol=1e-3, atol=1e-2)
    held = len(conv_packing._made)
    del weight
    assert len(conv_packing._made) == held - 1


@pytest.mark.parametrize("function", [UP, DOWN])
def test_an_infinity_reaches_the_outputs_under_its_taps_and_no_other(function: object) -> None:
    x, weight = _inputs(function, 32)
    x[1, 3, 6, 6] = float("inf")
    assert torch.equal(function(x, weight).isfinite(), _plain(function, x, weight).isfinite())


def test_layers_have_torchs_state_and_their_twins_results() -> None:
    for kind in ("UpscaleConv2d", "ConvDownscale2d"):
        for options in ({}, {"kernel_size": 5, "bias": False, "activation": "relu"}):
            torch.manual_seed(0)
            ours = getattr(gencore.nn, kind)(6, 8, **options)
            torch.manual_seed(0)
            plain = nn.Conv2d(6, 8, options.get("kernel_size", 3), bias=options.get("bias", True))
            assert ours.state_dict().keys() == plain.state_dict().keys()
            assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
            twin = getattr(gencore.nn.layers.LAYERS["torch"], kind)(6, 8, **options)
            twin.load_state_dict(ours.state_dict())
            x = torch.randn(2, 6, 10, 8)
            y = twin(x)
            torch.testing.assert_close(ours(x), y, rtol=1e-4, atol=1e-5)
            residual = torch.randn_like(y)
            torch.testing.assert_close(ours(x, residual), twin(x, residual=residual), rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match=f"{kind}: kernel_size must be odd, got 4"):
            getattr(gencore.nn, kind)(6, 8, 4)


@needs_kernels
def test_spectral_norm_folds_into_them() -> None:
    """1 / sigma goes to the convolution, and the filter is made of the weight as it is."""
    torch.manual_seed(0)
    network = nn.Sequential(
        spectral_norm(gencore.nn.UpscaleConv2d(32, 32)), spectral_norm(gencore.nn.ConvDownscale2d(32, 32))
    )
    x, grad = torch.randn(4, 32, 16, 16), torch.randn(4, 32, 16, 16)
    apart, wanted = [], None
    for batched in (False, True):
        if batched:
            spectral_norm_model(network)
        network.eval()
        y = network(x)
        gradients = torch.autograd.grad(y, list(network.parameters()), grad)
        apart.append((y, *gradients))
    for wanted, found in zip(*apart, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
