"""Estimates of log p(x) and E(x) for sets of images, batch by batch.

The Gaussian decoder gives a density of y = 2x − 1 on [−1, 1], in nats. It may be positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vaebm.model import VAEBM, Estimates
from vaebm.noise import NoiseSource, batches

BATCH = 250
"""Batch size for up to 32×32 pixels, smaller for larger images; fixed, because the last digits may depend on it."""


def at_once(images: Tensor) -> int:
    """Batch size for images (N, C, H, W)."""
    return max(min(BATCH, BATCH * 32 * 32 // (images.shape[2] * images.shape[3])), 1)


def estimate_in_batches(model: VAEBM, images: Tensor, seed: int, samples: int) -> Estimates:
    """`VAEBM.estimate` for uint8 images (N, C, H, W), on the CPU, with the draws of `VAEBM.score`.

    Args:
        model: frozen, in eval mode.
        seed: noise seed; the draws of an image depend only on it and on the image's index.
        samples: draws per image.
    """
    found, size = [], at_once(images)
    for index, batch in zip(batches(range(len(images)), size), images.split(size), strict=True):
        x = model.nvae.as_input(batch, NoiseSource(seed, "score input", index))
        found.append(model.estimate(x, NoiseSource(seed, "score", index), samples))
    return Estimates(*(None if parts[0] is None else torch.cat(parts).cpu() for parts in zip(*found, strict=True)))
