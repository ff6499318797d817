"""Estimates of log p(x) and E(x) for whole sets of images, batch by batch.

The Gaussian decoder gives a density of y = 2x − 1 on [−1, 1], in nats; it may be positive, and no bits per dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vaebm.model import VAEBM, Estimates
from vaebm.noise import NoiseSource

BATCH = 250
"""Images of up to 32×32 pixels at once, of larger ones fewer; fixed, since the last bits of a figure may depend on it."""


def at_once(images: Tensor) -> int:
    """How many of the images (N, C, H, W) a network sees at once."""
    return max(min(BATCH, BATCH * 32 * 32 // (images.shape[2] * images.shape[3])), 1)


def estimate(model: VAEBM, images: Tensor, seed: int, samples: int) -> Estimates:
    """`VAEBM.estimate` for uint8 images (N, C, H, W), on the CPU; the draws are those of `VAEBM.score`.

    Args:
        model: frozen, in eval mode.
        seed: of the noise; the draws of an image depend on it, on the image's place in `images`, and on nothing else.
        samples: draws per image.
    """
    found, size = [], at_once(images)
    for start, batch in zip(range(0, len(images), size), torch.split(images, size), strict=True):
        index = range(start, start + len(batch))
        x = model.nvae.as_input(batch, NoiseSource(seed, "score input", index))
        found.append(model.estimate(x, NoiseSource(seed, "score", index), samples))
    return Estimates(*(None if parts[0] is None else torch.cat(parts).cpu() for parts in zip(*found, strict=True)))
