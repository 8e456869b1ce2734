"""``spectral_norm``: samples, PyTorch's own version, and bad input."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
import torch.nn.functional as TF
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

from gencore import functional as F
from gencore.reference.spectral_norm import as_matrix
from tests.opspec import ErrorInput, OpSpec, Sample


def make(name: str, *shape: int, scale: float = 1.0, seed: int = 7, smooth: bool = True, **options: Any) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    options = {"training": True, "n_power_iterations": 1, "dim": 0, **options}
    dim, weight = options["dim"], torch.randn(shape, dtype=torch.float64, generator=generator) * scale
    # Near the singular vectors: with random ones sigma is small, and W / sigma ill-conditioned.
    matrix = as_matrix(weight, dim)
    u, v = (torch.randn(n, dtype=torch.float64, generator=generator) * max(n, 1) ** -0.5 for n in matrix.shape)
    if scale and matrix.numel():
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        u, v = left[:, 0] + 0.3 * u, right[0] + 0.3 * v
    # A longer weight has longer rows, or more of them.
    grows = ("u",) if dim % len(shape) == 0 else ("v",)
    return Sample(
        name,
        {"weight": weight, "u": TF.normalize(u, dim=0), "v": TF.normalize(v, dim=0)},
        options,
        smooth=smooth,
        batch=grows,
    )


def samples() -> list[Sample]:
    # Finite differences see u and v move with the weight, the gradient does not: the smallest, which get them, do not
    # iterate.
    return [
        make("convolution", 12, 5, 3, 3),
        make("transposed", 10, 6, 4, 4, dim=1),
        make("linear", 20, 33, n_power_iterations=3),
        make("evaluation", 4, 3, 2, 2, training=False),
        make("no_iterations", 5, 4, n_power_iterations=0),
        make("transposed_evaluation", 3, 4, 2, 3, dim=1, training=False),
        make("last_dimension", 3, 2, 5, dim=-1, training=False),
        make("linear_transposed", 33, 20, dim=1),
        make("u_first", 11, 5, 3, 3, v_first=False),
        make("volume", 6, 3, 3, 3, 3),
        make("one_row", 1, 200),
        make("one_column", 170, 1, n_power_iterations=2),
        make("vector", 160, dim=0),
        make("long_rows", 6, 70, 8, 8, v_first=False),
        make("many_rows", 700, 5, eps=1e-6),
        make("small", 16, 5, 3, 3, scale=1e-3),
        make("below_eps", 16, 5, 3, 3, scale=1e-20, smooth=False),
        make("zero", 16, 5, 3, 3, scale=0.0, smooth=False),
        make("empty_rows", 0, 5),
        make("empty_columns", 5, 0),
    ]


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    # One number alone is normalised to its sign, and its gradient nothing but rounding.
    size = tuple(draw(st.lists(st.integers(1, 21), min_size=1, max_size=4).filter(lambda size: prod(size) > 1)))
    return make(
        "drawn",
        *size,
        dim=draw(st.integers(-len(size), len(size) - 1)),
        seed=draw(st.integers(0, 999)),
        training=draw(st.booleans()),
        v_first=draw(st.booleans()),
        n_power_iterations=draw(st.integers(0, 3)),
    )


def composite(
    tensors: Mapping[str, Tensor | None], options: Mapping[str, Any], seed: int | None
) -> tuple[Tensor, Tensor]:
    """What ``torch.nn.utils`` does, in either order, with sigma in u's dtype; a weight below eps as it is."""
    weight, u, v = tensors["weight"], tensors["u"], tensors["v"]
    assert weight is not None
    assert u is not None
    assert v is not None
    dim, eps = options["dim"], options.get("eps", 1e-12)
    matrix = weight.movedim(dim, 0).reshape(u.numel(), v.numel()).to(u.dtype)
    with torch.no_grad():
        for _ in range(options["n_power_iterations"] if options["training"] else 0):
            for turn in "vu" if options.get("v_first", True) else "uv":
                target, product = (v, matrix.T @ u) if turn == "v" else (u, matrix @ v)
                if product.norm() >= eps:
                    target.copy_(TF.normalize(product, dim=0, eps=eps))
    sigma = torch.dot(u.clone(), torch.mv(matrix, v.clone()))
    return weight / torch.where(sigma.abs() < eps, 1.0, sigma), sigma


def errors() -> list[ErrorInput]:
    weight, u, v = torch.randn(4, 6), torch.ones(4), torch.ones(6)

    def case(name: str, message: str, torch_call: Any = None, /, **arguments: Any) -> ErrorInput:
        keywords: dict[str, Any] = {"weight": weight, "u": u, "v": v} | arguments

        def same() -> Any:
            return torch.dot(keywords["u"], torch.mv(keywords["weight"], keywords["v"]))

        return ErrorInput(name, lambda impl: F.spectral_norm(**keywords, impl=impl), torch_call or same, message)

    def layer(**arguments: Any) -> Any:
        return lambda: torch_spectral_norm(torch.nn.Linear(6, 4), **arguments)

    integers = torch.ones(4, 6, dtype=torch.int64)
    return [
        case("u", r"u must have shape \(4,\), got \(5,\)", u=torch.ones(5)),
        case("v", r"v must have shape \(6,\), got \(4,\)", v=torch.ones(4)),
        case("u_2d", r"u must have shape \(4,\), got \(1, 4\)", u=torch.ones(1, 4)),
        case("u_dtype", "u must have the dtype of weight, torch.float32, or", u=u.double()),
        case("device", "v is on meta", lambda: torch.lerp(v, torch.ones(6, device="meta"), 0.5), v=v.to("meta")),
        case("no_tensor", "weight must be a Tensor, got list", weight=[1.0]),
        case("u_is_no_tensor", "u must be a Tensor, got float", u=1.0),
        case("integer", "weight must have a floating-point dtype", weight=integers),
        case("scalar", "weight must have at least 1 dimension", lambda: torch.mm(u[0], weight), weight=torch.ones(())),
        case("dim", "dim must be between -2 and 1", layer(dim=2), dim=2),
        case("iterations", "must not be negative, got -1", layer(n_power_iterations=-1), n_power_iterations=-1),
        case("eps", "eps must be positive, got 0", lambda: TF.batch_norm(weight, v, v, eps=-1.0), eps=0.0),
        case("half", "must be a whole number, got 1.5", layer(n_power_iterations="1"), n_power_iterations=1.5),
        case("eps_inf", "eps must be finite", lambda: TF.batch_norm(weight, v, v, eps=-1.0), eps=float("inf")),
        case("eps_nan", "must be positive, got nan", lambda: TF.batch_norm(weight, v, v, eps=-1.0), eps=float("nan")),
    ]


SPEC = OpSpec(
    function=F.spectral_norm,
    samples=samples,
    shapes=shapes(),
    composite=composite,
    differentiable=("weight",),
    layout=("weight",),
    buffers=("u", "v"),
    keep_float32=("u", "v"),
    errors=errors,
)
