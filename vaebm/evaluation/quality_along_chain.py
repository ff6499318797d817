"""Sample quality and energy against the number of steps of the test chain."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vaebm.config import ChainSettings, SamplesSettings
from vaebm.config.evaluation import StepsSettings
from vaebm.fast import run_chain
from vaebm.model import VAEBM, sample_noise
from vaebm.noise import NoiseSource, batches
from vaebm.records.results import AlongChain
from vaebm.samples import grey_levels


class Stop(NamedTuple):
    """Chains of a batch after a number of steps."""

    means: Tensor
    """Decoder means (B, C, H, W), which may leave [0, 1]."""
    energies: Tensor
    """E(x), (B,), at the chain's x, which includes pixel noise."""
    gradients: int
    """Evaluations of the potential and its gradient."""
    seconds: float
    """Time of noise, chain and decoding, without the stops before. The chain runs step by step, without the recorded
    step of a GPU and without threads of its own."""


@torch.no_grad()
def stops(model: VAEBM, noise: NoiseSource, counts: Sequence[int], chain: ChainSettings) -> list[Stop]:
    """Run the chains of this noise and record them after each of the increasing numbers of steps `counts`.

    With a decay of the step size each number is a chain of its own.
    """
    if len(counts) > 1 and getattr(chain, "schedule", "constant") != "constant":
        return [stops(model, noise, [count], chain)[0] for count in counts]
    energy, potential = model.prepared_energy(), model.chain_potential()
    taken, began = itertools.count(), time.monotonic()
    eps_z, eps_x = model.initial_noise(noise)
    found: list[Stop] = []
    evaluated = 0

    def counted(eps: Sequence[Tensor]) -> Tensor:
        nonlocal evaluated
        evaluated += 1
        return potential(eps)

    def look(eps: Sequence[Tensor]) -> None:
        nonlocal began
        if next(taken) in counts:
            eps[0].sum().item()  # waits for the device
            stopped = time.monotonic()
            pixels = model.decoder.decode(eps[:-1])[0]
            means, seconds = pixels.mean.cpu(), time.monotonic() - began
            found.append(Stop(means, energy(pixels.sample(eps[-1])).cpu(), evaluated, seconds))
            began += time.monotonic() - stopped

    start = [*eps_z, eps_x]
    look(start)
    run_chain(counted, start, chain.model_copy(update={"steps": counts[-1]}), noise, look)
    return found


def quality_along_chain(
    model: VAEBM,
    settings: StepsSettings,
    sampling: SamplesSettings,
    seed: int,
    name: str,
    distance: Callable[[Tensor], float],
) -> AlongChain:
    """Compute distance, mean energy and cost after each number of steps; None if a chain is not finite.

    The chains are those of the first samples, with their `sampling` and `seed`. `distance` maps images (N, C, H, W)
    uint8 to their distance, which is called `name`.
    """
    parts = batches(range(settings.images), sampling.batch)
    chains = [stops(model, sample_noise(seed, part), settings.counts, sampling.chain) for part in parts]
    distances: list[float | None] = []
    energies: list[float | None] = []
    seconds: list[float] = []
    for at in zip(*chains, strict=True):
        images, each = torch.cat([stop.means for stop in at]), torch.cat([stop.energies for stop in at])
        energy = each.double().mean()
        kept = grey_levels(images, sampling.stretch).permute(0, 3, 1, 2) if images.isfinite().all() else None
        distances.append(None if kept is None else distance(kept))
        energies.append(float(energy) if energy.isfinite() else None)
        seconds.append(sum(stop.seconds for stop in at) / settings.images)
    return AlongChain(
        counts=settings.counts, metric=name, distances=distances, energy=energies, samples=settings.images,
        gradients=[stop.gradients for stop in chains[0]], seconds=seconds,
    )  # fmt: skip
