"""Scores of images by a pair of NVAE and energies."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vaebm.fast import prepare_energy, with_prepared_cells
from vaebm.model.latent_space import inputs
from vaebm.model.pretrained import StoredModel
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.nvae.pixel_distributions import match_noise
from vaebm.system.errors import UserError, check_number
from vaebm.system.shapes import GreyImages, Images, PerImage

BATCH, PIXELS = 1000, 250 * 32 * 32
"""Most images of a batch, and most pixels; fixed, because the last digits may depend on them."""


class Estimates(NamedTuple):
    """Estimates for images, in nats per image, each (B,) in double precision; None where a model has none."""

    elbo: PerImage | None
    """E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)), averaged over the draws (NVAE eq. 1)."""
    importance: PerImage | None
    """ln of the mean over the draws of p(x|z) p(z) / q(z|x) (Burda et al., 2016)."""
    energy: PerImage | None
    """E(x) for x as in the energy's training, and of a model with a prior E_ε(ε), averaged over the draws."""
    clean_energy: PerImage | None = None
    """E(x) of the images themselves, whatever the energy's training: log p(x) − E(x) − log Z is then a density."""

    @property
    def score(self) -> PerImage:
        """log p(x) − E(x), (B,); a part that is None is left out."""
        parts = [part for part in (self.importance, None if self.energy is None else -self.energy) if part is not None]
        return torch.stack(parts).sum(dim=0)


class ScoredModel(StoredModel):
    """A model that scores images; `VAEBM` explains its parts."""

    no_likelihood_reason = ""
    """Why log p(x) cannot be estimated; empty if it can."""

    @property
    def _prepares(self) -> bool:
        """Whether `vaebm.fast` can compute with prepared weights, in place of the modules."""
        return isinstance(self.nvae, NVAE) and not self.nvae.training and self.nvae.dtype != torch.float64

    def prepared_energy(self) -> Callable[[Images], PerImage]:
        """E(x), prepared with the present weights, or the network (see `VAEBM.chain_potential`)."""
        assert self.energy is not None
        return prepare_energy(self.energy) if self._prepares else self.energy

    @torch.no_grad()
    def estimate(self, images: Images | GreyImages, seed: int = 0, draws: int = 1) -> Estimates:
        """Estimate log p(x) and E(x) of images from `draws` draws z ~ q(z|x) each.

        The estimates are (N,), in double precision, on the CPU. The draws of image k depend only on `seed` and k.
        `images` and `seed` are those of `score`, and `draws` its `importance_samples`.

        Raises:
            UserError: as for `score`.
        """
        check_number("draws (importance_samples)", draws, 1)
        size = max(min(BATCH, PIXELS // (self.nvae.shape[1] * self.nvae.shape[2])), 1)
        found = [self._estimate(x, noise, draws) for x, noise in inputs(self.nvae, images, seed, "score", size)]
        return Estimates(*(None if parts[0] is None else torch.cat(parts).cpu() for parts in zip(*found, strict=True)))

    def _estimate(self, x: Images, noise: NoiseSource, draws: int) -> Estimates:
        """The estimates for images `x` of the NVAE's depth, all from the same draws; `noise` has one index per image.

        For an energy trained on `matched` positives, E(x) is the mean of E(x + ½σ(z) ω) over the draws. E_ε(ε) is added
        to E(x), not to log p(x), because its log Z is unknown.
        """
        elbo, weights, energies, priors = x.new_zeros(len(x), dtype=torch.float64), [], [], []
        features, energy = self.nvae.encode(x), None if self.energy is None else self.prepared_energy()
        nvae = with_prepared_cells(self.nvae) if self._prepares else self.nvae
        for draw in range(draws):
            out = nvae(x, noise=noise, step=draw, features=features)
            reconstruction = out.pixels.log_likelihood(x).double()
            elbo += (reconstruction - out.kl.double().sum(dim=1)) / draws
            weights.append(reconstruction + out.log_p.double() - out.log_q.double())
            if energy is not None and self.positives == "matched":
                energies.append(energy(match_noise(out.pixels, x, noise, draw).to(x.dtype)).double())
            if self.prior is not None:
                priors.append(self.prior([each.eps for each in out.draws]).double())
        clean = None if energy is None else energy(x).double()
        if clean is not None and self.positives == "clean":
            energies = [clean]
        importance = torch.stack(weights).logsumexp(dim=0) - math.log(draws)
        parts = [torch.stack(values).mean(dim=0) for values in (energies, priors) if values]
        return Estimates(elbo, importance, torch.stack(parts).sum(dim=0) if parts else None, clean)

    def _as_images(self, found: Tensor, images: Images | GreyImages) -> PerImage:
        own = torch.promote_types(images.dtype, torch.float32) if images.is_floating_point() else self.nvae.dtype
        return found.to(images.device, own)

    def log_likelihood(self, images: Images | GreyImages, seed: int = 0, importance_samples: int = 1) -> PerImage:
        """Importance-weighted bound on the NVAE's log p(x) in nats, (N,); one draw estimates the ELBO.

        It is the density of 2x − 1, or a probability for discrete decoders. Arguments and draws are those of `score`.

        Raises:
            UserError: as for `score`, or the model has no estimate of log p(x).
        """
        if (found := self.estimate(images, seed, importance_samples).importance) is None:
            raise UserError(f"log_likelihood: {self.no_likelihood_reason}")
        return self._as_images(found, images)

    def score(self, images: Images | GreyImages, seed: int = 0, importance_samples: int = 1) -> PerImage:
        """Estimate of log p(x) − E(x) in nats, (N,): the log-likelihood up to log Z; higher is more in-distribution.

        With an energy on noise also − E_ε(ε), averaged over the draws. The result has the device of the images and
        their floating-point type, at least single precision.

        Args:
            images: (N, C, H, W), N from 1, uint8 or any floating-point type in [0, 1]; their depth is reduced to the
                NVAE's, and for the Bernoulli decoder a pixel is drawn white with probability x.
            seed: seed of the posterior's draws, and of the pixel noise of `matched` positives.
            importance_samples: number of draws, from 1.

        Raises:
            UserError: images of another shape, type or range, or none, or no draws.
        """
        return self._as_images(self.estimate(images, seed, importance_samples).score, images)

    def forward(self, images: Images | GreyImages) -> PerImage:
        """`score` with its defaults, for `model(images)`: (B, C, H, W), uint8 or in [0, 1] → (B,)."""
        return self.score(images)
