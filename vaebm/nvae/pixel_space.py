"""Images as latent variables, for the ablation's energy on pixels (VAEBM table 4)."""

from collections.abc import Sequence

from torch import Tensor

from vaebm.nvae.pixel_distributions import Pixels
from vaebm.system.shapes import Images, PerImage


class PointImage(Pixels):
    """An image (B, C, H, W) as a distribution of pixels without noise; it may leave [0, 1], and has no density."""

    def __init__(self, image: Images):
        super().__init__()
        self.image = image

    @property
    def mean(self) -> Images:
        """The image."""
        return self.image

    def sample(self, eps: Images, temperature: float = 1.0) -> Images:
        """The image; `eps` and `temperature` are not used."""
        return self.image

    def log_prob(self, x: Images) -> Tensor:
        """Not defined."""
        raise NotImplementedError("an image without noise has no density")


class PixelSpace:
    """A decoder whose only latent group is the image itself."""

    def decode(self, eps: Sequence[Images]) -> tuple[Pixels, PerImage]:
        """The images eps[0] (B, C, H, W), and zeros (B,) in place of log p(z)."""
        return PointImage(eps[0]), eps[0].new_zeros(len(eps[0]))
