"""Diagnostics of chains: acceptance probability, autocorrelation of the energy, distance from the start."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaebm.chain.langevin import PotentialFunction, Transition, transitions
from vaebm.chain.schedules import StepSize
from vaebm.noise import NoiseSource
from vaebm.system.errors import UserError, check_number


@dataclass(frozen=True)
class ChainDiagnostics:
    """Diagnostics of a batch of chains; lists of K + 1 values begin with the start of the chains."""

    chains: int
    """B."""
    step_size: float
    """η of the first step."""
    acceptance: list[float]
    """Mean acceptance probability of each of the K steps; near 1 means a small bias by η without a correction."""
    energy: list[float]
    """Mean E(x), K + 1 values."""
    autocorrelation: list[float]
    """Autocorrelation of E(x) at lags 0 to K."""
    moved_latents: list[float]
    """RMS distance of ε_z from the start per coordinate, K + 1 values; √2 between independent draws."""
    moved_pixel_noise: list[float]
    """RMS distance of ε_x, likewise."""
    moved_pixels: list[float]
    """RMS distance of the images from the start per pixel, in the images' unit, K + 1 values."""


@torch.no_grad()
def diagnose(
    potential: PotentialFunction,
    eps: Sequence[Tensor],
    observe: Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]],
    *,
    steps: int,
    step_size: StepSize,
    noise: NoiseSource,
    batch: int | None = None,
    walk: Callable[..., Iterator[Transition]] = transitions,
    **settings: Any,
) -> ChainDiagnostics:
    """Run the chains of a kernel and measure them. Arguments that are not listed are those of `langevin`.

    Args:
        eps: start of at least two chains, one tensor (B, …) per latent group, the pixels' last.
        observe: returns E(x), (B,), and the images (B, C, H, W) of a state; called at the start and after each step.
        batch: chains per batch, from 1; None: all.
        walk: function like `transitions`.
        settings: its further keywords.

    Raises:
        UserError: as for `langevin`, a single chain, or a chain is no longer finite.
    """
    if len(eps[0]) < 2:
        raise UserError(f"eps: expected at least 2 chains, as the autocorrelation is over chains, found {len(eps[0])}")
    check_number("batch", size := len(eps[0]) if batch is None else batch, 1)
    energies, squares, probabilities = list[Tensor](), list[Tensor](), list[Tensor]()
    noise.check(len(eps[0]))
    for index in torch.arange(len(eps[0])).split(size):
        begin, source = [part[index] for part in eps], noise.at([noise.index[i] for i in index])
        first, images = observe(begin)
        values, distances, accepted = [first], [first.new_zeros(3, len(index), dtype=torch.float64)], list[Tensor]()
        walked = walk(potential, begin, steps=steps, step_size=step_size, noise=source, **settings)
        for state, probability in walked:
            energy, moved = observe(state.eps)
            values.append(energy)
            pairs = (state.eps[:-1], begin[:-1]), (state.eps[-1:], begin[-1:]), ([moved], [images])
            distances.append(torch.stack([square_distance(*pair) for pair in pairs]))
            accepted.append(probability)
        energies.append(torch.stack(values).double())
        squares.append(torch.stack(distances))
        probabilities.append(torch.stack(accepted) if accepted else energies[-1][:0])
    energy = torch.cat(energies, dim=1)  # (K + 1, B)
    distance = torch.cat(squares, dim=2).mean(dim=2).sqrt()  # (K + 1, 3)
    first_size = step_size[0] if isinstance(step_size, Sequence) else step_size
    if not (energy.isfinite().all() and distance.isfinite().all()):
        raise UserError(
            f"step_size: expected chains that stay finite over {steps} steps, found some that do not with "
            f"{first_size:g}; choose a smaller one"
        )
    latents, pixel_noise, pixels = distance.T.tolist()
    return ChainDiagnostics(
        chains=len(eps[0]),
        step_size=first_size,
        acceptance=torch.cat(probabilities, dim=1).mean(dim=1).tolist(),
        energy=energy.mean(dim=1).tolist(),
        autocorrelation=autocorrelation(energy).tolist(),
        moved_latents=latents,
        moved_pixel_noise=pixel_noise,
        moved_pixels=pixels,
    )


def autocorrelation(values: Tensor) -> Tensor:
    """Correlation of a chain's value with its value k steps later, k = 0 to T − 1: (T, B) → (T,).

    Moments are taken over the B chains at each step, then over the steps, so that a common drift does not count as
    correlation. Where all chains have equal values, the correlation is 1.
    """
    centred = values - values.mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1)
    lags = range(len(values))
    covariances = torch.stack([(centred[: len(values) - lag] * centred[lag:]).sum() for lag in lags])
    variances = torch.stack([(variance[: len(values) - lag].sum() * variance[lag:].sum()).sqrt() for lag in lags])
    return torch.where(variances > 0, covariances / variances, 1.0)


def square_distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Mean square difference of each chain between two lists of tensors (B, …); (B,) in double precision."""
    squares = [(a.double() - b.double()).square().flatten(1).sum(1) for a, b in zip(one, other, strict=True)]
    return torch.stack(squares).sum(0) / sum(part[0].numel() for part in one)
