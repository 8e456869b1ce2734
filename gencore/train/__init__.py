"""Training: a class for each kind of model that knows one step, one loop, and checkpoints that hold everything."""

from gencore.train.checkpoint import load_checkpoint, save_checkpoint
from gencore.train.gan import GANTraining
from gencore.train.loop import Training, fit
from gencore.train.vae import VAETraining

__all__ = ["GANTraining", "Training", "VAETraining", "fit", "load_checkpoint", "save_checkpoint"]
