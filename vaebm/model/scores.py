"""Scores of images by a pair of NVAE and energies."""

import torch
from torch import Tensor, nn

from vaebm.config.ebm import Positives
from vaebm.energy.estimates import Estimates, estimate, estimate_in_batches
from vaebm.energy.noise_energy import NoiseEnergy
from vaebm.model.pretrained import HubModel
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.system.errors import UserError
from vaebm.system.shapes import GreyImages, Images, PerImage


class ScoredModel(HubModel):
    """A model that scores images; `VAEBM` explains its parts."""

    nvae: NVAE
    energy: nn.Module | None
    positives: Positives
    prior: NoiseEnergy | None
    no_likelihood_reason = ""
    """Why log p(x) cannot be estimated; empty if it can."""

    @torch.no_grad()
    def estimate(self, images: Images | GreyImages, seed: int, draws: int) -> Estimates:
        """Estimate log p(x) and E(x) of images (N, C, H, W), uint8 or in [0, 1], from `draws` draws z ~ q(z|x) each.

        The estimates are (N,), in double precision, on the CPU. The draws of image k depend only on `seed` and k.

        Raises:
            UserError: no draws.
            ValueError: images of another shape than the model's.
        """
        if draws < 1:
            raise UserError(f"importance_samples: expected at least 1, found {draws}")
        return estimate_in_batches(self.nvae, images, seed, lambda x, noise: self._estimate(x, noise, draws))

    def _estimate(self, x: Images, noise: NoiseSource, draws: int) -> Estimates:
        return estimate(self.nvae, self.energy, self.positives, x, noise, draws, self.prior)

    def _as_images(self, found: Tensor, images: Images | GreyImages) -> PerImage:
        return found.to(images.device, images.dtype if images.is_floating_point() else self.nvae.dtype)

    def log_likelihood(self, images: Images | GreyImages, seed: int = 0, importance_samples: int = 1) -> PerImage:
        """Importance-weighted bound on the NVAE's log p(x) in nats, (N,); with one draw an ELBO.

        It is the density of 2x − 1, or a probability for discrete decoders. Arguments and draws are those of `score`.

        Raises:
            UserError: the model has no estimate of log p(x), or `importance_samples` is below 1.
            ValueError: images of another shape than the model's.
        """
        if (found := self.estimate(images, seed, importance_samples).importance) is None:
            raise UserError(f"log_likelihood: {self.no_likelihood_reason}")
        return self._as_images(found, images)

    def score(self, images: Images | GreyImages, seed: int = 0, importance_samples: int = 1) -> PerImage:
        """Estimate of log p(x) − E(x) in nats, (N,): the log-likelihood up to log Z; higher is more in-distribution.

        With a prior also − E_ε(ε), averaged over the draws.

        Args:
            images: (N, C, H, W), uint8 or in [0, 1]; their depth is reduced to the NVAE's, and for the Bernoulli
                decoder a pixel is drawn white with probability x.
            seed: seed of the posterior's draws, and of the pixel noise of `matched` positives.
            importance_samples: number of draws.

        Raises:
            UserError: `importance_samples` is below 1.
            ValueError: images of another shape than the model's.
        """
        return self._as_images(self.estimate(images, seed, importance_samples).score, images)

    def forward(self, images: Images | GreyImages) -> PerImage:
        """`score` with its defaults: images (B, C, H, W), uint8 or in [0, 1] → (B,)."""
        return self.score(images)
