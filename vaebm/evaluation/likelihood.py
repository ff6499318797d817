"""Estimates of log p(x) under the NVAE: the ELBO and the importance-weighted bound (NVAE eq. 1; Burda et al., 2016).

The Gaussian decoder gives a density of y = 2x − 1 on [−1, 1], in nats; it may be positive, and no bits per dimension.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE

BATCH = 250
"""Images of up to 32×32 pixels at once, of larger ones fewer; fixed, since the last bits of a figure may depend on it."""


class Likelihood(NamedTuple):
    """Estimates of log p(x), nats per image, each (N,)."""

    elbo: Tensor
    """E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)), the expectation as a mean over the draws."""
    importance: Tensor
    """ln of the mean over the draws of p(x|z) p(z) / q(z|x): never below the ELBO but for chance."""


def at_once(images: Tensor) -> int:
    """How many of the images (N, C, H, W) a network sees at once."""
    return max(min(BATCH, BATCH * 32 * 32 // (images.shape[2] * images.shape[3])), 1)


@torch.no_grad()
def estimate(nvae: NVAE, images: Tensor, seed: int, samples: int) -> Likelihood:
    """Both bounds for uint8 images (N, C, H, W), from the same draws of the posterior.

    The draws are those of `VAEBM.log_likelihood`, so that its values are the importance-weighted ones here.

    Args:
        nvae: frozen, in eval mode.
        seed: of the noise; the draws of an image depend on it, on the image's place in `images`, and on nothing else.
        samples: draws per image.
    """
    elbos, bounds, size = [], [], at_once(images)
    for start, batch in zip(range(0, len(images), size), torch.split(images, size), strict=True):
        index = range(start, start + len(batch))
        x, noise = nvae.as_input(batch, NoiseSource(seed, "score input", index)), NoiseSource(seed, "score", index)
        elbo, weights = torch.zeros(len(x), dtype=torch.float64, device=x.device), []
        for draw in range(samples):
            out = nvae(x, noise=noise, step=draw)
            reconstruction = out.pixels.log_likelihood(x).double()
            elbo += (reconstruction - out.kl.double().sum(dim=1)) / samples
            weights.append(reconstruction + out.log_p.double() - out.log_q.double())
        elbos.append(elbo.cpu())
        bounds.append((torch.stack(weights).logsumexp(dim=0) - math.log(samples)).cpu())
    return Likelihood(torch.cat(elbos), torch.cat(bounds))
