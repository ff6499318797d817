"""Execution of prepared chains: a recorded step on a GPU, threads with chains of their own on a CPU."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from vaebm.chain.langevin import PotentialFunction, langevin
from vaebm.chain.schedules import keywords
from vaebm.config import KERNELS, ChainSettings
from vaebm.fast.energy import PreparedEnergy
from vaebm.fast.potential import PreparedPotential
from vaebm.noise import NoiseSource
from vaebm.system.plugins import imported

MIN_IMAGE_VALUES = 1024
"""Operations on smaller images are so short that threads would wait for Python's lock."""


def run_chain(
    potential: PotentialFunction,
    eps: Sequence[Tensor],
    chain: ChainSettings,
    noise: NoiseSource,
    callback: Callable[[list[Tensor]], object] | None = None,
) -> list[Tensor]:
    """Run a chain with the kernel of its settings; arguments and result are those of `langevin`."""
    kernel, settings = imported(KERNELS[chain.kernel].run), keywords(chain)
    if callback is not None or chain.kernel in KERNELS.plugins:
        return kernel(potential, eps, **settings, noise=noise, callback=callback)
    if chain.kernel == "langevin" and settings == {"steps": chain.steps, "step_size": chain.step_size}:
        return run_langevin(potential, eps, noise=noise, **settings)
    return share_out(kernel, potential, eps, noise, **settings)


def run_langevin(
    potential: PotentialFunction, eps: Sequence[Tensor], *, steps: int, step_size: float, noise: NoiseSource
) -> list[Tensor]:
    """Run `langevin`; prepared potentials use a CUDA graph on a GPU."""
    prepared = potential if isinstance(potential, PreparedPotential) else None
    if eps[0].is_cuda and steps > 1 and prepared and isinstance(prepared.energy, PreparedEnergy):
        return prepared.replay(eps, steps=steps, step_size=step_size, noise=noise)
    return share_out(langevin, potential, eps, noise, steps=steps, step_size=step_size)


def share_out(
    kernel: Callable[..., list[Tensor]],
    potential: PotentialFunction,
    eps: Sequence[Tensor],
    noise: NoiseSource,
    **settings: Any,
) -> list[Tensor]:
    """Run a kernel; prepared potentials use several threads for large images on a CPU.

    Threads with chains of their own synchronise once, at the end. torch's threads synchronise after each operation.
    """
    chains, all_threads = len(eps[0]), torch.get_num_threads()
    threads = min(all_threads, chains // 16)  # with fewer images torch chooses a slower convolution in a single thread
    large = eps[-1][0].numel() >= MIN_IMAGE_VALUES and not eps[0].is_cuda
    if threads < 2 or not large or not isinstance(potential, PreparedPotential):
        return kernel(potential, eps, noise=noise, **settings)

    def run_part(part: slice) -> list[Tensor]:
        return kernel(potential, [each[part] for each in eps], noise=noise.at(noise.index[part]), **settings)

    parts = [slice(number * chains // threads, (number + 1) * chains // threads) for number in range(threads)]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            moved = list(pool.map(run_part, parts))
    finally:
        torch.set_num_threads(all_threads)  # new threads inherit the number that was set last
    return [torch.cat(each) for each in zip(*moved, strict=True)]
