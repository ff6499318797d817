"""Images as latent variables, for the ablation's energy on pixels (VAEBM table 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from vaebm.nvae.model import NVAE


class PixelSpace:
    """An NVAE-like decoder whose only latent group is the image itself; `nvae` gives everything else."""

    def __init__(self, nvae: NVAE):
        self.nvae = nvae
        self.shape, self.settings, self.prior_constant = nvae.shape, nvae.settings, nvae.prior_constant
        self.device, self.dtype = nvae.device, nvae.dtype
        self.latent_shapes = [nvae.shape]
        self.encode, self.as_input = nvae.encode, nvae.as_input

    class Image(NamedTuple):
        """An image as a distribution of pixels without noise."""

        mean: Tensor
        """(B, C, H, W); may leave [0, 1]."""

        def sample(self, eps: Tensor) -> Tensor:
            """The image, (B, C, H, W); `eps` is not used."""
            return self.mean

    def decode(self, eps: Sequence[Tensor]) -> tuple[PixelSpace.Image, Tensor]:
        """The images eps[0] (B, C, H, W), and zeros (B,) in place of log p(z)."""
        return PixelSpace.Image(eps[0]), eps[0].new_zeros(len(eps[0]))
