"""gencore: fused, differentiable ops for generative image models, with CPU, Triton and PyTorch implementations."""

from gencore import functional
from gencore.dispatch import Explanation, UnsupportedImplementation, backend, explain
from gencore.environment import Environment, env

__version__ = "0.1.0"

__all__ = ["Environment", "Explanation", "UnsupportedImplementation", "backend", "env", "explain", "functional"]
