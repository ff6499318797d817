"""Estimates of log p(x) and E(x) from draws of the posterior."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaebm.config.ebm import Positives
from vaebm.energy.noise_energy import NoiseEnergy
from vaebm.noise import NoiseSource, batches
from vaebm.nvae.model import NVAE
from vaebm.nvae.pixel_distributions import match_noise
from vaebm.system.shapes import GreyImages, Images, PerImage

BATCH = 250
"""Images per batch up to 32×32 pixels, fewer for larger images; fixed, because the last digits may depend on it."""


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


def estimate(
    nvae: NVAE,
    energy: nn.Module | None,
    positives: Positives,
    x: Images,
    noise: NoiseSource,
    draws: int,
    prior: NoiseEnergy | None = None,
) -> Estimates:
    """Estimate log p(x) and E(x) from the same draws z ~ q(z|x).

    For an energy trained on `matched` positives, E(x) is the mean of E(x + ½σ(z) ω) over the draws.

    Args:
        x: images (B, C, H, W) in [0, 1], of the NVAE's depth; a Gaussian decoder gives the density of 2x − 1.
        noise: noise of the draws, one index per image.
        draws: number of draws.
        prior: E_ε(ε), averaged over the draws and added to E(x); not in log p(x), because its log Z is unknown.
    """
    elbo, weights, energies, priors = x.new_zeros(len(x), dtype=torch.float64), [], [], []
    for draw in range(draws):
        out = nvae(x, noise=noise, step=draw)
        reconstruction = out.pixels.log_likelihood(x).double()
        elbo += (reconstruction - out.kl.double().sum(dim=1)) / draws
        weights.append(reconstruction + out.log_p.double() - out.log_q.double())
        if energy is not None and positives == "matched":
            energies.append(energy(match_noise(out.pixels, x, noise, draw)).double())
        if prior is not None:
            priors.append(prior([each.eps for each in out.draws]).double())
    clean = None if energy is None else energy(x).double()
    if clean is not None and positives == "clean":
        energies = [clean]
    importance = torch.stack(weights).logsumexp(dim=0) - math.log(draws)
    parts = [torch.stack(values).mean(dim=0) for values in (energies, priors) if values]
    return Estimates(elbo, importance, torch.stack(parts).sum(dim=0) if parts else None, clean)


def estimate_in_batches(
    nvae: NVAE, images: Images | GreyImages, seed: int, of_batch: Callable[[Tensor, NoiseSource], Estimates]
) -> Estimates:
    """`of_batch` for each batch of images (N, C, H, W), converted by `NVAE.as_input`; the estimates are on the CPU."""
    found, size = [], max(min(BATCH, BATCH * 32 * 32 // (images.shape[2] * images.shape[3])), 1)
    for index, batch in zip(batches(range(len(images)), size), torch.split(images, size), strict=True):
        x = nvae.as_input(batch, NoiseSource(seed, "score input", index))
        found.append(of_batch(x, NoiseSource(seed, "score", index)))
    return Estimates(*(None if parts[0] is None else torch.cat(parts).cpu() for parts in zip(*found, strict=True)))
