"""Training: a class for each kind of model that knows one step, one loop, and checkpoints that hold everything."""

from gencore.train.checkpoint import load_checkpoint, save_checkpoint
from gencore.train.ema import EMA
from gencore.train.gan import GANTraining
from gencore.train.growth import Growth
from gencore.train.lazy import lazy_adam
from gencore.train.loop import Training, fit
from gencore.train.progan import ProGANTraining
from gencore.train.restoration import RestorationTraining, gaussian_noise
from gencore.train.stylegan import StyleGANTraining
from gencore.train.vae import VAETraining

__all__ = [
    "EMA",
    "GANTraining",
    "Growth",
    "ProGANTraining",
    "RestorationTraining",
    "StyleGANTraining",
    "Training",
    "VAETraining",
    "fit",
    "gaussian_noise",
    "lazy_adam",
    "load_checkpoint",
    "save_checkpoint",
]
