"""The model zoo: one file an architecture, built from :mod:`gencore.nn`."""

from gencore.models.dcgan import DCGAN
from gencore.models.progan import ProGAN
from gencore.models.registry import create_model, list_models, register_model
from gencore.models.stylegan import StyleGAN
from gencore.models.stylegan2 import StyleGAN2
from gencore.models.vae import VAE

__all__ = ["DCGAN", "VAE", "ProGAN", "StyleGAN", "StyleGAN2", "create_model", "list_models", "register_model"]
