"""Sample quality and energy against the number of steps of the test chain."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vaebm.config import ChainSettings, SamplesSettings
from vaebm.config.evaluation import StepsSettings
from vaebm.fast import run_chain
from vaebm.model import VAEBM, sample_noise
from vaebm.noise import NoiseSource, batches
from vaebm.records.results import AlongChain
from vaebm.samples import grey_levels


@torch.no_grad()
def stops(model: VAEBM, noise: NoiseSource, counts: Sequence[int], chain: ChainSettings) -> list[tuple[Tensor, Tensor]]:
    """Run the chains of this noise and record them after each of the increasing numbers of steps `counts`.

    With a decay of the step size each number is a chain of its own.

    Returns:
        Decoder means (B, C, H, W), which may leave [0, 1], and energies E(x), (B,), at the chain's x, which includes
        pixel noise.
    """
    assert (energy := model.energy) is not None
    if len(counts) > 1 and getattr(chain, "schedule", "constant") != "constant":
        return [stops(model, noise, [count], chain)[0] for count in counts]
    eps_z, eps_x = model.initial_noise(noise)
    found: list[tuple[Tensor, Tensor]] = []
    taken = itertools.count()

    def look(eps: Sequence[Tensor]) -> None:
        if next(taken) in counts:
            pixels = model.decoder.decode(eps[:-1])[0]
            found.append((pixels.mean.cpu(), energy(pixels.sample(eps[-1])).cpu()))

    start = [*eps_z, eps_x]
    look(start)
    run_chain(model.chain_potential(), start, chain.model_copy(update={"steps": counts[-1]}), noise, look)
    return found


def quality_along_chain(
    model: VAEBM,
    settings: StepsSettings,
    sampling: SamplesSettings,
    seed: int,
    name: str,
    distance: Callable[[Tensor], float],
) -> AlongChain:
    """Compute distance and mean energy after each number of steps; None if a chain is not finite.

    The chains are those of the first samples, with their `sampling` and `seed`. `distance` maps images (N, C, H, W)
    uint8 to their distance, which is called `name`.
    """
    parts = batches(range(settings.images), sampling.batch)
    chains = [stops(model, sample_noise(seed, part), settings.counts, sampling.chain) for part in parts]
    distances: list[float | None] = []
    energies: list[float | None] = []
    for at in zip(*chains, strict=True):
        images, each = map(torch.cat, zip(*at, strict=True))
        energy = each.double().mean()
        kept = grey_levels(images, sampling.stretch).permute(0, 3, 1, 2) if images.isfinite().all() else None
        distances.append(None if kept is None else distance(kept))
        energies.append(float(energy) if energy.isfinite() else None)
    return AlongChain(
        counts=settings.counts, metric=name, distances=distances, energy=energies, samples=settings.images
    )
