"""Published weights of BigGAN, ProGAN, StyleGAN and StyleGAN2, from other projects' files and back into them."""

from gencore.pretrained.files import FORMATS, load_pretrained, save_pretrained
from gencore.pretrained.safe_pickle import PickledModule, RefusedPickle, read_pickle

__all__ = ["FORMATS", "PickledModule", "RefusedPickle", "load_pretrained", "read_pickle", "save_pretrained"]
