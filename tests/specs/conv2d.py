"""``conv2d``: the family's spec."""

from gencore import functional as F
from tests.specs._convolution import convolution_spec

SPEC = convolution_spec(F.conv2d)
