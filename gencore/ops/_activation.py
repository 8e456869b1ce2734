"""The activations that kernels fuse, by name; the numbers are those of csrc/include/gencore/activation_kind.h."""

from __future__ import annotations

ACTIVATIONS = {"identity": 0, "relu": 1, "leaky_relu": 2, "tanh": 3, "silu": 4}
CONV_ACTIVATIONS = {**ACTIVATIONS, "sigmoid": 5, "prelu": 6}
"""Those of convolution and linear; ``prelu`` takes its slopes as a tensor."""
EPILOGUE_ACTIVATIONS = {**ACTIVATIONS, "sigmoid": 5, "elu": 7, "selu": 8, "softplus": 9}
"""Those of ``bias_act``."""


def check_activation(where: str, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"{where}: activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
