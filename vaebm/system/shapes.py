"""Shapes of tensors in signatures; the tests check them at every call (jaxtyping, beartype)."""

from jaxtyping import Float, UInt8
from torch import Tensor

Images = Float[Tensor, "batch channels height width"]
"""Images, or noise of their shape."""
GreyImages = UInt8[Tensor, "batch channels height width"]
"""Images as grey levels 0 to 255."""
Latents = Float[Tensor, "batch _latents _height _width"]
"""Latent variables or noise of one group, or features of one scale; groups differ in size."""
GreyPixels = UInt8[Tensor, "batch height width channels"]
"""Grey levels 0 to 255, colours last, as in files."""
PerGroup = Float[Tensor, "batch groups"]
"""One value per image and latent group."""
PerImage = Float[Tensor, "batch"]
"""One value per image or chain."""
Paths = Float[Tensor, "batch places channels height width"]
"""Images on a path for each pair of images."""
