"""Images as latent variables, for the ablation's energy on pixels (VAEBM table 4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vaebm.nvae.pixel_distributions import Pixels


class PointImage(Pixels):
    """An image (B, C, H, W) as a distribution of pixels without noise; it may leave [0, 1], and has no density."""

    def __init__(self, image: Tensor):
        super().__init__()
        self.image = image

    @property
    def mean(self) -> Tensor:
        """The image."""
        return self.image

    def sample(self, eps: Tensor, temperature: float = 1.0) -> Tensor:
        """The image; `eps` and `temperature` are not used."""
        return self.image

    def log_prob(self, x: Tensor) -> Tensor:
        """Not defined."""
        raise NotImplementedError("an image without noise has no density")


class PixelSpace:
    """A decoder whose only latent group is the image itself."""

    def decode(self, eps: Sequence[Tensor]) -> tuple[Pixels, Tensor]:
        """The images eps[0] (B, C, H, W), and zeros (B,) in place of log p(z)."""
        return PointImage(eps[0]), eps[0].new_zeros(len(eps[0]))
