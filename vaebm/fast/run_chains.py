"""How prepared chains are moved: on a GPU by a recorded step, on a CPU by several threads, each with chains of its own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from vaebm.chain.langevin import Potential, langevin
from vaebm.fast.potential import PreparedPotential
from vaebm.noise import NoiseSource

LEAST = 16
"""Chains of a thread, at least: with fewer images torch takes a slower convolution in a single thread."""

LARGE = 1024
"""Values of an image, at least: operations on smaller ones are so short that the threads would wait for Python's lock instead."""


def move(
    potential: Potential, eps: Sequence[Tensor], *, steps: int, step_size: float, noise: NoiseSource
) -> list[Tensor]:
    """As `langevin`. On a GPU the step of a prepared potential is recorded and replayed (`cuda_graph`). On a CPU its chains on large
    images are shared out to as many threads as torch has.

    Chains know nothing of each other. Threads that share them need not wait for each other until the end; threads that share
    every operation, as torch's own do, wait after each of some hundred in every step.
    """
    device, chains = eps[0].device, len(eps[0])
    if device.type == "cuda" and steps > 1 and isinstance(potential, PreparedPotential) and potential.recordable:
        return potential.replay(eps, steps=steps, step_size=step_size, noise=noise)
    threads = min(torch.get_num_threads(), chains // LEAST)
    if (
        threads < 2
        or eps[-1][0].numel() < LARGE
        or device.type != "cpu"
        or not isinstance(potential, PreparedPotential)
    ):
        return langevin(potential, eps, steps=steps, step_size=step_size, noise=noise)

    def of(share: slice) -> list[Tensor]:
        return langevin(
            potential,
            [part[share] for part in eps],
            steps=steps,
            step_size=step_size,
            noise=noise.at(noise.index[share]),
        )

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            moved = list(
                pool.map(
                    of,
                    (slice(number * chains // threads, (number + 1) * chains // threads) for number in range(threads)),
                )
            )
    finally:
        torch.set_num_threads(
            before
        )  # each thread has its own number, but later ones begin with the one that was set last
    return [torch.cat(parts) for parts in zip(*moved, strict=True)]
