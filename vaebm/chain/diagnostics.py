"""What chains do: would a Metropolis correction take their steps, how fast do they forget, how far do they move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaebm.chain.langevin import Potential, transitions
from vaebm.noise import NoiseSource
from vaebm.system.errors import UserError


@dataclass(frozen=True)
class ChainDiagnostics:
    """Figures of a batch of unadjusted chains, plain values; lists over the steps begin with the start of the chains."""

    chains: int
    """B."""
    step_size: float
    """η."""
    acceptance: list[float]
    """Mean probability with which a Metropolis correction would take each of the K steps: near 1 where η biases little."""
    energy: list[float]
    """Mean E(x), K + 1 values."""
    autocorrelation: list[float]
    """Of E(x) along the chains at lags 0 to K."""
    moved_latents: list[float]
    """Root mean square distance of ε_z from the start per coordinate, K + 1 values; between independent draws √2."""
    moved_pixel_noise: list[float]
    """The same for ε_x."""
    moved_pixels: list[float]
    """Root mean square distance of the images from those at the start per pixel, in the images' unit, K + 1 values."""


@torch.no_grad()
def diagnose(
    potential: Potential,
    eps: Sequence[Tensor],
    observe: Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]],
    *,
    steps: int,
    step_size: float,
    noise: NoiseSource,
    batch: int | None = None,
) -> ChainDiagnostics:
    """Run the chains of `langevin` from `eps` with the same noise, and measure them.

    Args:
        potential: the chain's U(ε), (B,).
        eps: the start, one tensor per latent group, the pixels' last, each (B, …); two chains or more.
        observe: the energies E(x), (B,), and the images, (B, C, H, W), at a state; called once at the start and after each step.
        steps: K.
        step_size: η.
        noise: as for `langevin`.
        batch: chains computed at once, one after the other batch; None: all.

    Raises:
        UserError: the chains left the finite numbers.
    """
    energies, squares, probabilities = list[Tensor](), list[Tensor](), list[Tensor]()
    for index in torch.arange(len(eps[0])).split(batch or len(eps[0])):
        begin, source = [part[index] for part in eps], noise.at([noise.index[i] for i in index])
        first, images = observe(begin)
        values, distances, accepted = [first], [first.new_zeros(3, len(index), dtype=torch.float64)], list[Tensor]()
        for state, probability in transitions(potential, begin, steps=steps, step_size=step_size, noise=source):
            energy, moved = observe(state.eps)
            values.append(energy)
            distances.append(
                torch.stack(
                    [
                        square_distance(state.eps[:-1], begin[:-1]),
                        square_distance(state.eps[-1:], begin[-1:]),
                        square_distance([moved], [images]),
                    ]
                )
            )
            accepted.append(probability)
        energies.append(torch.stack(values).double())
        squares.append(torch.stack(distances))
        probabilities.append(torch.stack(accepted) if accepted else energies[-1][:0])
    energy, distance = (
        torch.cat(energies, dim=1),
        torch.cat(squares, dim=2).mean(dim=2).sqrt(),
    )  # (K + 1, B), (K + 1, 3)
    if not (energy.isfinite().all() and distance.isfinite().all()):
        raise UserError(
            f"step_size: expected chains that stay finite over {steps} steps, found some that do not with {step_size:g}; choose a smaller one"
        )
    latents, pixel_noise, pixels = distance.T.tolist()
    return ChainDiagnostics(
        chains=len(eps[0]),
        step_size=step_size,
        acceptance=torch.cat(probabilities, dim=1).mean(dim=1).tolist(),
        energy=energy.mean(dim=1).tolist(),
        autocorrelation=autocorrelation(energy).tolist(),
        moved_latents=latents,
        moved_pixel_noise=pixel_noise,
        moved_pixels=pixels,
    )


def autocorrelation(values: Tensor) -> Tensor:
    """Correlation of a chain's value with its value k steps later, for k = 0 to T − 1: (T, B) → (T,).

    Each moment is taken over the B chains at a step of its own and then over the steps, so that chains that drift together,
    as those on their way from the prior do, are not taken for chains that remember. Values that all chains share count as 1.
    """
    centred = values - values.mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1)
    lags = range(len(values))
    covariances = torch.stack([(centred[: len(values) - lag] * centred[lag:]).sum() for lag in lags])
    variances = torch.stack([(variance[: len(values) - lag].sum() * variance[lag:].sum()).sqrt() for lag in lags])
    return torch.where(variances > 0, covariances / variances, 1.0)


def square_distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Mean square difference of each chain over all values of two lists of tensors (B, …) of equal shapes; (B,) in double precision."""
    squares = torch.stack(
        [(a.double() - b.double()).square().flatten(1).sum(1) for a, b in zip(one, other, strict=True)]
    )
    return squares.sum(0) / sum(part[0].numel() for part in one)
