"""The model zoo: one file an architecture, built from :mod:`gencore.nn`."""

from gencore.models.dcgan import DCGAN
from gencore.models.registry import create_model, list_models, register_model
from gencore.models.vae import VAE

__all__ = ["DCGAN", "VAE", "create_model", "list_models", "register_model"]
