"""``conv2d_downscale2d``: both have one spec."""

from gencore import functional as F
from tests.specs._rescaled import rescaled_spec

SPEC = rescaled_spec(F.conv2d_downscale2d)
