"""Layers of style-based networks: equalised weights, modulation, noise, and what the helpers of resampling promise."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as TF

from gencore import UnsupportedImplementation, explain, nn
from gencore import functional as F
from gencore.extension import EXTENSION
from tests.accuracy import error
from tests.opspec import HALF

kernels = pytest.mark.skipif(not EXTENSION.loaded, reason="needs the C++ extension")


def test_setup_filter() -> None:
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    torch.testing.assert_close(F.setup_filter([1, 3, 3, 1]), torch.outer(row, row) / 64)
    torch.testing.assert_close(F.setup_filter(row, separable=True, gain=4.0), row / 8 * 2)
    assert F.setup_filter([1.0] * 8).shape == (8,)
    torch.testing.assert_close(F.setup_filter([[1, 2], [3, 4]], normalize=False, flip_filter=True)[0, 0].item(), 4.0)
    assert F.setup_filter(None).tolist() == [[1.0]]
    for bad in (torch.ones(1, 1, 1), [], torch.ones(0, 3)):
        with pytest.raises(RuntimeError, match="setup_filter: f must be"):
            F.setup_filter(bad)
    with pytest.raises(RuntimeError, match="separable f must be one row"):
        F.setup_filter(torch.ones(2, 2), separable=True)
    with pytest.raises(RuntimeError, match=r"must not sum to 0 where normalize=True, got \[1.0, -1.0\]"):
        F.setup_filter([1, -1])
    for bad in ([1, float("nan")], torch.ones(3) * 1j):
        with pytest.raises(RuntimeError, match="f must be finite real numbers, got"):
            F.setup_filter(bad)
    assert F.setup_filter([1, -1], normalize=False).sum() == 0


@pytest.mark.parametrize("taps", [[1, 1], [1, 2, 1], [1, 3, 3, 1], [1, 4, 6, 4, 1]])
def test_resampling_keeps_a_constant_image(taps: list[float]) -> None:
    """Inside, where no zero of the padding is seen: the gain and the sizes are right."""
    f, x = F.setup_filter(taps), torch.full((1, 2, 16, 16), 3.0)
    for y, size in ((F.upsample2d(x, f), 32), (F.downsample2d(x, f), 8), (F.filter2d(x, f), 16)):
        assert y.shape == (1, 2, size, size)
        torch.testing.assert_close(y[:, :, 4:-4, 4:-4], torch.full_like(y[:, :, 4:-4, 4:-4], 3.0))


def test_resampling_is_centred() -> None:
    """A symmetric image stays symmetric under a symmetric filter of even length."""
    f, x = F.setup_filter([1, 3, 3, 1]), torch.randn(1, 2, 8, 8)
    x = x + x.flip([2, 3])
    for y in (F.upsample2d(x, f), F.downsample2d(x, f)):
        torch.testing.assert_close(y, y.flip([2, 3]))


@pytest.mark.parametrize("up", [1, 2])
def test_modulated_convolution_demodulates(up: int) -> None:
    """White noise in, variance 1 out whatever the style; where zeros stand between the pixels, up^2."""
    torch.manual_seed(0)
    x, weight, style = torch.randn(2, 64, 48, 48), torch.randn(8, 64, 3, 3) * 7, torch.rand(2, 64) * 3 + 0.1
    y = F.modulated_conv2d(x, weight, style, up=up, padding=1)
    assert (y[:, :, 2:-2, 2:-2].square().mean([2, 3]) / up**2 - 1).abs().max() < 0.1


def test_equalized_layers_are_their_formula() -> None:
    torch.manual_seed(0)
    linear = nn.FullyConnected(6, 4, activation="lrelu", lr_multiplier=0.01, bias_init=2.0)
    x = torch.randn(3, 5, 6)
    torch.testing.assert_close(linear.bias * 0.01, torch.full((4,), 2.0))
    wanted = TF.leaky_relu(x @ linear.weight.t() * (0.01 / 6**0.5) + 2.0, 0.2) * 2**0.5
    torch.testing.assert_close(linear(x), wanted)

    conv = nn.EqualizedConv2d(3, 4, 3, activation="lrelu", clamp=0.5, weight_gain=2**0.5, act_gain=1.0)
    x = torch.randn(2, 3, 5, 6)
    wanted = TF.leaky_relu(TF.conv2d(x, conv.weight * (2 / 27) ** 0.5, padding=1), 0.2) * 3
    torch.testing.assert_close(conv(x, gain=3.0), wanted.clamp(-1.5, 1.5))
    assert nn.EqualizedConv2d(3, 4, 3, down=2)(x).shape == (2, 4, 2, 3)
    assert nn.EqualizedConv2d(3, 4, 3, up=2)(x).shape == (2, 4, 10, 12)
    assert nn.EqualizedConv2d(3, 4, 1, down=2)(x).shape == (2, 4, 2, 3)
    assert set(conv.state_dict()) == {"weight", "bias"}


def test_modulated_layer_and_its_noise() -> None:
    torch.manual_seed(0)
    layer = nn.ModulatedConv2d(5, 4, 3, 7, up=2, noise_resolution=8)
    assert set(layer.state_dict()) == {
        *("weight", "bias", "noise_strength", "noise_const", "affine.weight", "affine.bias")
    }
    x, w = torch.randn(3, 5, 4, 4), torch.randn(3, 7)
    quiet = layer(x, w, noise="none")
    torch.testing.assert_close(layer(x, w), quiet)  # the strength is 0 at first
    torch.nn.init.constant_(layer.noise_strength, 0.3)
    given = torch.randn(3, 1, 8, 8)
    style = layer.affine(w)
    for noise in ("const", given):
        image = layer.noise_const if noise == "const" else given
        wanted = F.modulated_conv2d(
            *(x, layer.weight, style), up=2, padding=1, resample_filter=F.setup_filter([1, 3, 3, 1]), flip_weight=False
        )
        torch.testing.assert_close(layer(x, w, noise), TF.leaky_relu(wanted + 0.3 * image, 0.2) * 2**0.5)
    first, again, other = (layer(x, w, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    with pytest.raises(ValueError, match="noise must be"):
        layer(x, w, noise="loud")
    picture = nn.ModulatedConv2d(5, 3, 1, 7, demodulate=False, activation="linear")
    wanted = TF.conv2d(x * picture.affine(w)[:, :, None, None], picture.weight / 5**0.5)
    torch.testing.assert_close(picture(x, w), wanted)


def test_small_layers() -> None:
    x = torch.randn(4, 3, 8, 8)
    noise = nn.NoiseInjection(3)
    assert torch.equal(noise(x), x)
    torch.nn.init.ones_(noise.weight)
    torch.testing.assert_close(noise(x, x[:, :1]), x + x[:, :1])
    for bad in (x, x[:2, :1], x[:, :1, :4], x[0, :1]):
        with pytest.raises(RuntimeError, match=r"noise must have shape \[4 or 1, 1, 8, 8\] or \[8, 8\], got"):
            noise(x, bad)
    with pytest.raises(RuntimeError, match=r"x must have shape \[N, 3, H, W\], got \(4, 2, 8, 8\)"):
        noise(x[:, :2])
    assert nn.MinibatchStdDev()(x).shape == (4, 4, 8, 8)
    torch.testing.assert_close(nn.PixelNorm()(x).square().mean(1), torch.ones(4, 8, 8))
    assert nn.Upsample2d()(x).shape == (4, 3, 16, 16)
    assert nn.Downsample2d()(x).shape == (4, 3, 4, 4)
    assert nn.Blur()(x).shape == x.shape
    for layer in (nn.FullyConnected, nn.EqualizedConv2d, nn.ModulatedConv2d):
        arguments = (3, 4) if layer is nn.FullyConnected else (3, 4, 3, 5) if layer is nn.ModulatedConv2d else (3, 4, 3)
        with pytest.raises(ValueError, match=f"{layer.__name__}: activation must be one of linear, relu"):
            layer(*arguments, activation="gulu")


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", ["lrelu", "linear"])
def test_fused_up_sampling_is_the_reference(dtype: torch.dtype, channels_last: bool, activation: str) -> None:
    """Without gradients the filter's pass ends in the epilogue: wide and narrow, noise shared or not."""
    torch.manual_seed(0)
    f = F.setup_filter([1, 3, 3, 1])
    for channels, out, clamp in ((5, 37, None), (48, 16, 0.9)):
        x, weight = torch.randn(2, channels, 7, 17), torch.randn(out, channels, 3, 3)
        style, noise, bias = torch.rand(2, channels) + 0.5, torch.randn(2, 1, 14, 34), torch.randn(out)
        for one in (noise, noise[:1], noise[0, 0], None):
            given = [None if t is None else t.to(dtype) for t in (x, weight, style, one, bias)]
            if channels_last:
                given[0] = given[0].contiguous(memory_format=torch.channels_last)
            exact = [None if t is None else t.double() for t in given]
            results = []
            for values, impl in ((given, "cpu"), (exact, "reference")):
                options = {"up": 2, "padding": 1, "resample_filter": f, "flip_weight": False, "impl": impl}
                options |= {"noise": values[3], "bias": values[4], "activation": activation, "clamp": clamp}
                results.append(F.modulated_conv2d(*values[:3], **options))
            # A 16-bit image is rounded after each of three steps; in float64 the oracle errs as much as what it judges.
            allowed = 4 if dtype in HALF else 64 if dtype == torch.float64 else 16
            assert error(*results) < allowed * torch.finfo(dtype).eps
            assert results[0].is_contiguous() is not channels_last


@kernels
@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("shape", "out", "kernel"),
    [
        ((3, 20, 9, 7), 18, 3),
        ((2, 5, 6, 8), 7, 3),
        ((2, 128, 33, 32), 3, 1),
        ((2, 16, 4, 4), 2, 1),
        ((0, 16, 4, 4), 8, 3),
    ],
)
@pytest.mark.parametrize("activation", ["lrelu", "linear"])
def test_the_end_of_a_layer_in_one_op_is_the_reference(
    dtype: torch.dtype, channels_last: bool, shape: tuple[int, ...], out: int, kernel: int, activation: str
) -> None:
    """Where no gradient is recorded: noise of the batch and of a sample, with and without what may be left out."""
    x, weight, style = torch.randn(shape), torch.randn(out, shape[1], kernel, kernel), torch.randn(shape[:2]) + 1
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    noises = (torch.randn(shape[0], 1, *shape[2:]), torch.randn(shape[2:]), None)
    rest = (
        {"clamp": 0.5, "gain": 1.5, "alpha": 0.1, "bias": torch.randn(out)},
        {"demodulate": False, "gain": -2.0, "input_gain": 0.5},
        {"flip_weight": False},
    )
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}.get(dtype, 0.05)
    for noise, options in itertools.product(noises, rest):
        results = []
        for d, impl in ((dtype, "cpu"), (torch.float64, "reference")):
            given = {k: v.to(d) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
            given |= {} if noise is None else {"noise": noise.to(d), "noise_strength": 0.3}
            values = (t.to(dtype).to(d) for t in (x, weight, style))
            results.append(F.modulated_conv2d(*values, padding=kernel // 2, activation=activation, impl=impl, **given))
        ours, wanted = results
        assert ours.dtype == dtype
        assert ours.is_contiguous(memory_format=torch.channels_last) or not channels_last or ours.numel() == 0
        scale = wanted.abs().max().item() if wanted.numel() else 1.0
        torch.testing.assert_close(ours.double(), wanted, rtol=tolerance, atol=tolerance * max(1.0, scale))


@kernels
@pytest.mark.parametrize("up", [1, 2])
def test_no_tangent_is_lost_where_no_gradient_is_recorded(up: int) -> None:
    x, weight, style = torch.randn(2, 16, 6, 6), torch.randn(16, 16, 3, 3), torch.randn(2, 16)

    def run(x: torch.Tensor, impl: str) -> torch.Tensor:
        return F.modulated_conv2d(x, weight, style, up=up, padding=1, activation="lrelu", impl=impl)

    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda x: run(x, "cpu"), (x,), (x,))
    grads = [torch.func.grad(lambda x, i=i: run(x, i).square().sum())(x) for i in ("cpu", "reference")]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@kernels
def test_what_is_not_finite_stays_in_its_place_in_one_op() -> None:
    x, weight, style = torch.randn(2, 16, 12, 12), torch.randn(16, 16, 3, 3), torch.randn(2, 16)
    x[1, 3, 5, 6] = float("nan")
    noise = torch.randn(2, 1, 12, 12)
    y, wanted = (
        F.modulated_conv2d(x, weight, style, padding=1, noise=noise, activation="lrelu", clamp=2.0, impl=impl)
        for impl in ("cpu", "reference")
    )
    torch.testing.assert_close(y, wanted, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert y.isnan().sum() == 16 * 9


@kernels
def test_winograd_alone_takes_the_end_of_a_layer() -> None:
    raw, weight, x, y = (
        torch.ops.gencore_c,
        torch.randn(16, 16, 3, 3),
        torch.randn(2, 16, 5, 5),
        torch.empty(2, 16, 5, 5),
    )
    geometry = (1, [3, 3], [1, 1], [1, 1], [1, 1], False, 0, 0.0)

    def forward(scheme: int, *end: object) -> None:
        packed = torch.empty(raw.conv_packed_bytes(weight, 1, True, scheme), dtype=torch.uint8)
        raw.conv_pack(weight, 1, True, scheme, packed)
        raw.conv_forward(x, packed, None, None, None, None, *geometry, scheme, y, None, None, *end)

    style, noise = torch.randn(2, 16), torch.randn(2, 25)
    forward(1, style, noise, 2.0, 1.0)
    for end in ((style, None), (None, noise), (None, None, 2.0), (None, None, 1.0, 1.0)):
        with pytest.raises(RuntimeError, match="go with winograd alone"):
            forward(0, *end)
    with pytest.raises(RuntimeError, match="style must have 32 elements"):
        forward(1, torch.randn(16), None)
    with pytest.raises(RuntimeError, match="noise must have 50 elements"):
        forward(1, None, torch.randn(24))


@pytest.mark.parametrize("up", [1, 2, 3])
@pytest.mark.parametrize("down", [1, 2])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 3)])
@pytest.mark.parametrize("flip_weight", [True, False])
def test_resampled_convolutions_are_their_three_steps(
    up: int, down: int, kernel: tuple[int, int], flip_weight: bool
) -> None:
    torch.manual_seed(0)
    for groups, padding in ((1, 1), (2, [0, 2, 1, 0]), (1, [2, -1, -1, 3])):
        x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
        weight = torch.randn(6, 4 // groups, *kernel, dtype=torch.float64)
        for f in (None, F.setup_filter([1, 3, 3, 1]), torch.randn(3, 2)):
            arguments = (x, weight, f, up, down, padding, groups, flip_weight)
            wanted = F.conv2d_resample(*arguments, flip_filter=True, impl="reference")
            torch.testing.assert_close(F.conv2d_resample(*arguments, flip_filter=True, impl="cpu"), wanted)


@kernels
def test_a_filter_with_a_gradient_is_the_references() -> None:
    x, f = torch.randn(1, 2, 5, 5), torch.randn(2, 2, requires_grad=True)
    assert explain("upfirdn2d", x, f).chosen == "reference"
    (grad,) = torch.autograd.grad(F.upfirdn2d(x, f).sum(), f)
    assert grad.abs().sum() > 0
    with pytest.raises(UnsupportedImplementation, match="only the reference has a gradient of the filter"):
        F.upfirdn2d(x, f, impl="cpu")
    weight, style = torch.randn(3, 2, 3, 3), torch.ones(1, 2)
    assert explain("modulated_conv2d", x, weight, style, up=2, resample_filter=f).chosen == "reference"
    assert explain("conv2d_resample", x, weight, f).chosen == "reference"
    assert explain("conv2d_resample", x, weight.requires_grad_()).chosen == "cpu"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.FullyConnected(0, 4), "FullyConnected: in_features must be at least 1, got 0"),
        (lambda: nn.FullyConnected(4, 4, lr_multiplier=0), "lr_multiplier must not be 0"),
        (lambda: nn.EqualizedConv2d(3, 4, 0), "EqualizedConv2d: kernel_size must be at least 1, got 0"),
        (lambda: nn.EqualizedConv2d(3, 4, 2), "kernel_size must be odd, for the size to be kept, got 2"),
        (lambda: nn.EqualizedConv2d(3, 4, 3, up=0), "up must be at least 1, got 0"),
        (lambda: nn.EqualizedConv2d(3, 4, 3, clamp=-1), "clamp must be None or at least 0, got -1"),
        (lambda: nn.ModulatedConv2d(3, 4, 3, 5, clamp=-1), "ModulatedConv2d: clamp must be None or at least 0"),
        (lambda: nn.ModulatedConv2d(3, 4, 4, 5), "ModulatedConv2d: kernel_size must be odd"),
        (lambda: nn.ModulatedConv2d(3, 4, 3, 0), "style_dim must be at least 1, got 0"),
    ],
)
def test_layers_that_could_not_work(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_even_kernel_with_its_padding() -> None:
    assert nn.EqualizedConv2d(3, 4, 2, padding=0)(torch.randn(1, 3, 8, 8)).shape == (1, 4, 7, 7)


def test_noise_of_one_image_and_of_no_tensor() -> None:
    layer, x, noise = nn.NoiseInjection(3), torch.randn(2, 3, 4, 5), torch.randn(4, 5)
    layer.weight.data.normal_()
    torch.testing.assert_close(layer(x, noise), layer(x, noise[None, None]))
    assert layer(x.bfloat16(), noise).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="NoiseInjection: noise must be a Tensor, got float"):
        layer(x, 0.5)  # type: ignore[arg-type]


def test_sizes_of_groups_are_whole_numbers() -> None:
    with pytest.raises(TypeError, match=r"minibatch_stddev: group_size must be a whole number, got 2.0"):
        F.minibatch_stddev(torch.randn(4, 2, 3, 3), group_size=2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("up", [1, 2])
def test_what_is_kept_of_a_weight_follows_its_changes(up: int) -> None:
    """Through the version counter and around it; made in inference mode, it does not reach a recorded call."""
    generator = torch.Generator().manual_seed(0)
    x, style = (torch.randn(shape, generator=generator) for shape in ((2, 6, 5, 5), (2, 6)))
    weight = torch.randn(4, 6, 3, 3, generator=generator)
    padding = 1 if up == 1 else 2

    def check(style: torch.Tensor) -> torch.Tensor:
        ours, wanted = (
            F.modulated_conv2d(x, weight, style, up=up, padding=padding, flip_weight=up == 1, impl=impl)
            for impl in ("cpu", "reference")
        )
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
        return ours

    with torch.inference_mode():
        check(style)
    leaf = style.clone().requires_grad_()
    check(leaf).sum().backward()
    for change in (lambda: weight.mul_(3), lambda: weight.data[0].neg_(), lambda: weight.data[1].mul_(0.1)):
        check(style)
        change()
        check(style)
    weight.requires_grad_()
    check(leaf).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0
