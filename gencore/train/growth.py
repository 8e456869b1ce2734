"""Growing networks while they train: which resolution when, and images to match."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gencore.models.resolutions import resolutions


@dataclass(frozen=True)
class Growth:
    """At every resolution ``stable`` images with all of its layers, then ``fade`` images that fade the next one in.

    Attributes:
        top: the last resolution, a power of two.
        start: the first one (4 in ProGAN, 8 in StyleGAN).
        stable, fade: numbers of images (800,000 each in both papers).

    Reference:
        Karras et al., "Progressive Growing of GANs", 2018, section 2 and appendix A.1.
    """

    top: int
    start: int = 4
    stable: int = 800_000
    fade: int = 800_000

    def __post_init__(self) -> None:
        if self.start not in resolutions(self.top):
            raise ValueError(f"Growth: start must be a power of two in 4..{self.top}, got {self.start}")
        if self.stable < 0 or self.fade < 0 or self.stable + self.fade == 0:
            raise ValueError(f"Growth: stable and fade must not be negative, got {self.stable} and {self.fade}")

    def at(self, seen: int) -> tuple[int, float]:
        """The resolution once ``seen`` images have been shown, and alpha: the weight of its own layers, 0 to 1."""
        phase, within = divmod(seen, self.stable + self.fade)
        resolution = self.start << phase
        if resolution >= self.top:
            return self.top, 1.0
        if within < self.stable:
            return resolution, 1.0
        return 2 * resolution, (within - self.stable) / self.fade


def match(images: Tensor, resolution: int, alpha: float) -> Tensor:
    """Real images as a growing generator would draw them: averaged down to ``resolution``, and faded.

    Args:
        images: ``[N, C, H, H]``, H at least ``resolution`` and a multiple of it.
        resolution: height and width of the result.
        alpha: 1 for the images themselves, 0 for half the resolution in doubled pixels, and between a mixture, so that
            a fade-in changes real and generated images alike.
    """
    images = F.avg_pool2d(images, images.shape[-1] // resolution)
    if alpha < 1:
        images = torch.lerp(F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0), images, alpha)
    return images
