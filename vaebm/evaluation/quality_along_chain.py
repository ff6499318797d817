"""Sample quality and energy against the number of test-chain steps: what the chain does, and what going on would do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from vaebm.chain.langevin import langevin
from vaebm.config import SamplesSettings
from vaebm.config.evaluation import StepsSettings
from vaebm.model import VAEBM, sample_noise
from vaebm.noise import NoiseSource
from vaebm.nvae.pixel_distributions import PixelNormal
from vaebm.samples import grey_levels


class Stop(NamedTuple):
    """A batch of chains after some number of steps."""

    images: Tensor
    """Decoder means (B, C, H, W), which may leave [0, 1]."""
    energies: Tensor
    """E(x), (B,), at the chain's own x, which holds the noise of the pixels."""


@torch.no_grad()
def stops(model: VAEBM, noise: NoiseSource, counts: Sequence[int], step_size: float) -> list[Stop]:
    """The chains of the samples with this noise, looked at after each of the rising numbers of steps `counts`."""
    assert (energy := model.energy) is not None
    eps_z, eps_x = model.noise_like_prior(noise)
    found: list[Stop] = []
    taken = itertools.count()

    def look(eps: Sequence[Tensor]) -> None:
        if next(taken) in counts:
            pixels = cast(PixelNormal, model.decoder.decode(eps[:-1])[0])
            found.append(Stop(pixels.mean.cpu(), energy(pixels.sample(eps[-1])).cpu()))

    start = [*eps_z, eps_x]
    look(start)
    langevin(model.chain_potential(), start, steps=counts[-1], step_size=step_size, noise=noise, watch=look)
    return found


def against_steps(
    model: VAEBM,
    settings: StepsSettings,
    sampling: SamplesSettings,
    seed: int,
    name: str,
    distance: Callable[[Tensor], float],
) -> dict[str, Any]:
    """Distance and mean energy after each number of steps; None where chains have left the finite numbers.

    The chains are those of the first samples: with the test chain's number of steps these very images come out.

    Args:
        model: with an energy.
        sampling: of the samples: the chain's step size, chains at once, and how images are kept.
        seed: of the samples.
        name: of the distance.
        distance: of images (N, C, H, W) uint8 to the real ones.

    Returns:
        What metrics.json has under "steps": counts, the distances under their name, energy, samples.
    """
    parts = [
        range(first, min(first + sampling.batch, settings.images))
        for first in range(0, settings.images, sampling.batch)
    ]
    chains = [stops(model, sample_noise(seed, part), settings.counts, sampling.chain.step_size) for part in parts]
    distances: list[float | None] = []
    energies: list[float | None] = []
    for at in zip(*chains, strict=True):
        images, energy = (
            torch.cat([stop.images for stop in at]),
            torch.cat([stop.energies for stop in at]).double().mean(),
        )
        distances.append(
            distance(grey_levels(images, sampling.stretch).permute(0, 3, 1, 2)) if images.isfinite().all() else None
        )
        energies.append(float(energy) if energy.isfinite() else None)
    return {"counts": settings.counts, name: distances, "energy": energies, "samples": settings.images}
