"""The model zoo: one file an architecture, built from :mod:`gencore.nn`."""

from gencore.models.biggan import BigGAN
from gencore.models.biggan_deep import BigGANDeep
from gencore.models.dcgan import DCGAN
from gencore.models.gan3d import GAN3D
from gencore.models.progan import ProGAN
from gencore.models.red_cnn import REDCNN
from gencore.models.red_net import REDNet
from gencore.models.registry import create_model, list_models, register_model
from gencore.models.sngan import SNGAN
from gencore.models.stylegan import StyleGAN
from gencore.models.stylegan2 import StyleGAN2
from gencore.models.vae import VAE

__all__ = [
    "DCGAN",
    "GAN3D",
    "REDCNN",
    "SNGAN",
    "VAE",
    "BigGAN",
    "BigGANDeep",
    "ProGAN",
    "REDNet",
    "StyleGAN",
    "StyleGAN2",
    "create_model",
    "list_models",
    "register_model",
]
