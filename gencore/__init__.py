"""gencore: fused, differentiable ops for generative image models, with CPU, Triton and PyTorch implementations."""

from gencore import functional, memory, nn
from gencore.dispatch import Explanation, UnsupportedImplementation, backend, explain
from gencore.environment import Environment, env
from gencore.freezing import freeze, unfreeze
from gencore.models import create_model, list_models
from gencore.patching import patch, unpatch

__version__ = "0.1.0"

__all__ = [
    "Environment",
    "Explanation",
    "UnsupportedImplementation",
    "backend",
    "create_model",
    "env",
    "explain",
    "freeze",
    "functional",
    "list_models",
    "memory",
    "nn",
    "patch",
    "unfreeze",
    "unpatch",
]
