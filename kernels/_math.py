"""Device functions that several kernels share: exp without cancellation, sine and cosine of pi t, noise, activations.

All of them take and return float32. They are built from plain arithmetic, so that the interpreter computes what the
compiled code computes, and none needs a slow path with local memory as a general ``sin`` does.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exp_and_expm1(x):
    """``(e^x, e^x - 1)``, the second without cancellation near 0; inf above 88.73, (0, -1) far below, NaN for NaN."""
    clamped = tl.where(x < -104.0, -104.0, tl.where(x > 89.0, 89.0, x))
    # x = n ln 2 + r with |r| <= ln(2) / 2. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    shifted = clamped * 1.44269504088896341 + 12582912.0
    n = shifted.to(tl.int32, bitcast=True) - 0x4B400000
    nf = shifted - 12582912.0
    r = clamped - nf * 0.693359375
    r = r - nf * -2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    q = p * (r * r) + r  # e^r - 1
    # 2^n as a product of two, neither of which leaves the range of a normal number.
    half = n >> 1
    power0 = ((half + 127) << 23).to(tl.float32, bitcast=True)
    power1 = ((n - half + 127) << 23).to(tl.float32, bitcast=True)
    exp = (q + 1.0) * power0 * power1
    power = power0 * power1
    # Near overflow the power alone is infinite while q may be negative: infinity times q would make a NaN.
    expm1 = tl.where(x > 80.0, exp, power * q + (power - 1.0))
    return exp, expm1


@triton.jit
def sin_cos_pi(t):
    """``(sin(pi t), cos(pi t))`` for |t| <= 1; the quadrant is exact, so there is no loss near the zeros."""
    shifted = t * 2.0 + 12582912.0
    quadrant = shifted.to(tl.int32, bitcast=True)
    r = (t - (shifted - 12582912.0) * 0.5) * 3.14159265358979
    r2 = r * r
    s = r2 * -1.9515295891e-4 + 8.3321608736e-3
    s = s * r2 - 1.6666654611e-1
    s = s * r2 * r + r
    c = r2 * 2.443315711809948e-5 - 1.388731625493765e-3
    c = c * r2 + 4.166664568298827e-2
    c = c * r2 * r2 - r2 * 0.5 + 1.0
    swap = (quadrant & 1) != 0
    sine = tl.where(swap, c, s)
    cosine = tl.where(swap, s, c)
    sine = tl.where((quadrant & 2) != 0, -sine, sine)
    cosine = tl.where(((quadrant + 1) & 2) != 0, -cosine, cosine)
    return sine, cosine


@triton.jit
def philox_normal(seed, counter):
    """Four standard normal numbers for each counter: the words 0..3 of Philox 4x32-10, words 0, 1 and words 2, 3 being
    one Box-Muller pair each. With counter = 16 block + l they are the elements 16 w + l of the block of 64.

    seed: int64 scalar. counter: int32 or int64, not negative.
    """
    low = counter.to(tl.uint32)
    high = (counter >> 32).to(tl.uint32) if counter.dtype == tl.int64 else low * 0
    word0, word1, word2, word3 = tl.philox(seed, low, high, low * 0, low * 0)
    normal0, normal1 = _box_muller(word0, word1)
    normal2, normal3 = _box_muller(word2, word3)
    return normal0, normal1, normal2, normal3


@triton.jit
def _box_muller(word_radius, word_angle):
    uniform = word_radius.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # 2^-32 and 2^-33
    turn = word_angle.to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10  # 2^-31
    # A word near 2^32 rounds up to u = 1, and the logarithm to a tiny positive number in some implementations.
    radius = tl.sqrt_rn(tl.maximum(-2.0 * tl.log(uniform), 0.0))
    sine, cosine = sin_cos_pi(turn)
    return radius * cosine, radius * sine


# The activations by number, as in gencore/ops/_activation.py.
RELU, LEAKY_RELU, TANH, SILU = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4)
SIGMOID, ELU, SELU, SOFTPLUS = tl.constexpr(5), tl.constexpr(7), tl.constexpr(8), tl.constexpr(9)
SELU_ALPHA, SELU_SCALE = tl.constexpr(1.6732632423543772), tl.constexpr(1.0507009873554805)


@triton.jit
def activate(u, negative_slope, ACTIVATION: tl.constexpr):
    """The activation at ``u``; NaN stays NaN."""
    if ACTIVATION == RELU:
        u = tl.where(u <= 0, 0.0, u)
    elif ACTIVATION == LEAKY_RELU:
        u = tl.where(u > 0, u, u * negative_slope)
    elif ACTIVATION == TANH:
        u = tanh(u)
    elif ACTIVATION == SILU:
        u = u * sigmoid(u)
    elif ACTIVATION == SIGMOID:
        u = sigmoid(u)
    elif ACTIVATION == ELU:
        _, expm1 = exp_and_expm1(u)
        u = tl.where(u > 0, u, expm1)
    elif ACTIVATION == SELU:
        _, expm1 = exp_and_expm1(u)
        u = tl.where(u > 0, u, expm1 * SELU_ALPHA) * SELU_SCALE
    elif ACTIVATION == SOFTPLUS:
        u = softplus(u)
    return u


@triton.jit
def activation_derivative(u, negative_slope, ACTIVATION: tl.constexpr):
    """The derivative at the pre-activation ``u``; at 0 it is PyTorch's choice."""
    if ACTIVATION == RELU:
        d = tl.where(u <= 0, 0.0, 1.0)
    elif ACTIVATION == LEAKY_RELU:
        d = tl.where(u > 0, 1.0, negative_slope)
    elif ACTIVATION == TANH:
        t = tanh(u)
        d = 1.0 - t * t
    elif ACTIVATION == SILU:
        s = sigmoid(u)
        d = s * (1.0 + u * (1.0 - s))
    elif ACTIVATION == SIGMOID:
        s = sigmoid(u)
        d = s * (1.0 - s)
    elif ACTIVATION == ELU:
        exp, _ = exp_and_expm1(u)
        d = tl.where(u > 0, 1.0, exp)
    elif ACTIVATION == SELU:
        exp, _ = exp_and_expm1(u)
        d = tl.where(u > 0, 1.0, exp * SELU_ALPHA) * SELU_SCALE
    elif ACTIVATION == SOFTPLUS:
        d = sigmoid(u)
    else:
        d = tl.full(u.shape, 1.0, tl.float32)
    return d


@triton.jit
def tanh(x):
    a = tl.abs(x)
    exp, expm1 = exp_and_expm1(2.0 * a)
    # The first does not cancel near 0, the second does not overflow.
    t = tl.where(a < 0.5, expm1 / (expm1 + 2.0), 1.0 - 2.0 / (exp + 1.0))
    return tl.where(x < 0, -t, t)


@triton.jit
def softplus(x):
    """log(1 + e^x), without overflow, and without loss where e^x is small."""
    z, _ = exp_and_expm1(-tl.abs(x))
    u = 1.0 + z
    # log(u) z / (u - 1) takes back what rounding u did (Kahan); where u rounds to 1 the logarithm is z.
    small = tl.where(u == 1.0, z, tl.log(u) * (z / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.where(x > 0, x, 0.0) + tl.where(x == x, small, x)


@triton.jit
def sigmoid(x):
    exp, _ = exp_and_expm1(-x)
    return 1.0 / (1.0 + exp)
