"""Samples of pixel distributions."""

import torch

from vaebm.noise import NoiseSource
from vaebm.nvae.pixel_distributions import (
    PixelBernoulli,
    PixelLogisticMixture,
    PixelNormal,
    Pixels,
)

DOUBLE = torch.float64


def drawn(pixels: Pixels, purpose: str = "test", temperature: float = 1.0) -> torch.Tensor:
    """A sample of each distribution of the batch, with noise of its kind."""
    count, *shape = pixels.mean.shape
    noise = NoiseSource(0, purpose, range(count))
    if isinstance(pixels, PixelNormal):
        return pixels.sample(noise.normal([shape], dtype=DOUBLE)[0], temperature)
    if isinstance(pixels, PixelBernoulli):
        return pixels.sample(noise.uniform([shape], dtype=DOUBLE)[0], temperature)
    assert isinstance(pixels, PixelLogisticMixture)
    uniforms = noise.uniform([pixels.mixture_logits.shape[1:], shape], dtype=DOUBLE)
    return pixels.sample([1e-5 + (1 - 2e-5) * uniform for uniform in uniforms], temperature)
