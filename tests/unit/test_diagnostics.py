"""Figures of chains against closed forms for Gaussians."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from vaebm.chain.diagnostics import ChainDiagnostics, autocorrelation, diagnose
from vaebm.chain.langevin import langevin
from vaebm.noise import NoiseSource
from vaebm.system.errors import UserError

CHAINS, STEPS, STEP_SIZE, PRECISION = 4000, 8, 0.5, 2.0
DECAY = 1 - STEP_SIZE * PRECISION / 2
"""a in ε ← a ε + √η ω: unadjusted Langevin steps for U = λ ε²/2."""
VARIANCE = STEP_SIZE / (1 - DECAY**2)
"""Of the stationary law."""


def potential(eps: Sequence[Tensor]) -> Tensor:
    """λ ε²/2 for one latent variable; none for the pixels' noise, which walks at random."""
    return 0.5 * PRECISION * eps[0].square().flatten(1).sum(1) + 0.0 * eps[1].flatten(1).sum(1)


def observe(eps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A linear energy, and images on which the latent variable shows a tenth of its size."""
    return 3.0 + 2.0 * eps[0].flatten(1).sum(1), (0.5 + 0.1 * eps[0]).expand(-1, 3, 2, 2)


@pytest.fixture(scope="module")
def figures() -> ChainDiagnostics:
    """Of chains that start from the stationary law."""
    noise = NoiseSource(0, "chain", range(CHAINS))
    eps_z, eps_x = noise.normal([(1, 1, 1), (3, 2, 2)])
    return diagnose(
        potential, [math.sqrt(VARIANCE) * eps_z, eps_x], observe, steps=STEPS, step_size=STEP_SIZE, noise=noise
    )


def test_autocorrelation_of_a_linear_energy(figures: ChainDiagnostics) -> None:
    """(1 − ηλ/2)^k; the standard error of a correlation over independent chains is at most 1/√chains for any lag."""
    expected = [DECAY**lag for lag in range(STEPS + 1)]
    assert figures.autocorrelation == pytest.approx(expected, abs=4 / math.sqrt(CHAINS))
    assert figures.autocorrelation[0] == pytest.approx(1.0, abs=1e-12)
    assert figures.energy == pytest.approx([3.0] * (STEPS + 1), abs=4 * 2 * math.sqrt(VARIANCE / CHAINS))


def test_acceptance_in_closed_form(figures: ChainDiagnostics) -> None:
    """In the stationary law the log ratio is (ηλ²/8)(x² − y²), the product of the independent normal variables x − y
    and x + y.

    E min(1, exp(W)) of such a product with scale t is (1 + (2/π) arccos(t) / √(1 − t²)) / 2; t = λ² √η³ s / 4 here.
    """
    t = PRECISION**2 * STEP_SIZE**1.5 * math.sqrt(VARIANCE) / 4
    expected = 0.5 * (1 + 2 / math.pi * math.acos(t) / math.sqrt(1 - t**2))
    error = 4 * math.sqrt(expected * (1 - expected) / CHAINS)  # values in [0, 1] of this mean vary at most as a coin's
    assert figures.acceptance == pytest.approx([expected] * STEPS, abs=error)
    assert 1 - expected > 4 * error


def test_distances_from_the_start(figures: ChainDiagnostics) -> None:
    """E (ε_k − ε_0)² = 2 s² (1 − a^k) for the latent variable, k η for a random walk; pixels move by a tenth."""
    latents = [math.sqrt(2 * VARIANCE * (1 - DECAY**step)) for step in range(STEPS + 1)]
    walk = [math.sqrt(step * STEP_SIZE) for step in range(STEPS + 1)]
    error = 4 / math.sqrt(
        2 * CHAINS
    )  # four relative standard errors of the root of a mean square of CHAINS normal variables, or more
    assert figures.moved_latents == pytest.approx(latents, rel=error)
    assert figures.moved_pixel_noise == pytest.approx(walk, rel=error / math.sqrt(12))
    assert figures.moved_pixels == pytest.approx([0.1 * distance for distance in figures.moved_latents], rel=1e-5)


def test_chains_that_drift_together_are_not_taken_for_chains_that_remember() -> None:
    """AR(1) with a strong common drift: the correlation is that of the chains around their mean."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(CHAINS, generator=generator, dtype=torch.float64)]
    for _ in range(5):
        values.append(
            0.5 * values[-1] + math.sqrt(0.75) * torch.randn(CHAINS, generator=generator, dtype=torch.float64)
        )
    drifting = torch.stack([value + 100.0 * step for step, value in enumerate(values)])
    assert autocorrelation(drifting).tolist() == pytest.approx(
        [0.5**lag for lag in range(6)], abs=4 / math.sqrt(CHAINS)
    )
    assert autocorrelation(torch.ones(3, 4)).tolist() == [1.0, 1.0, 1.0]


def test_the_chains_are_those_of_langevin_and_the_figures_are_plain() -> None:
    noise = NoiseSource(0, "chain", range(3))
    start, seen = noise.normal([(1, 1, 1), (3, 2, 2)]), []
    figures = diagnose(
        potential, start, lambda eps: (seen.append(eps), observe(eps))[1], steps=4, step_size=0.1, noise=noise
    )
    end = langevin(potential, start, steps=4, step_size=0.1, noise=noise)
    assert len(seen) == 5
    assert all(torch.equal(*pair) for pair in zip(seen[-1], end, strict=True))
    assert json.loads(json.dumps(asdict(figures), allow_nan=False)) == asdict(figures)


@pytest.mark.parametrize(
    ("chains", "changes", "message"),
    [
        (1, {}, "eps: expected at least 2 chains, as the autocorrelation is over chains, found 1"),
        (3, {"batch": 0}, "batch: expected an integer from 1, found 0"),
        (3, {"steps": -1}, "steps: expected an integer from 0, found -1"),
        (2, {"noise": NoiseSource(0, "chain", [0])}, "noise: expected an index for each of 2 samples, found 1"),
    ],
)
def test_diagnostics_that_are_not_defined_are_refused(chains: int, changes: dict[str, object], message: str) -> None:
    noise = NoiseSource(0, "chain", range(chains))
    settings = {"steps": 2, "step_size": 0.1, "noise": noise} | changes
    with pytest.raises(UserError, match=message):
        diagnose(potential, noise.normal([(1, 1, 1), (3, 2, 2)]), observe, **settings)  # type: ignore[arg-type]


def test_chains_that_leave_the_finite_numbers_are_one_clear_line() -> None:
    noise = NoiseSource(0, "chain", range(3))
    with pytest.raises(
        UserError, match="step_size: expected chains that stay finite over 60 steps.*with 100; choose a smaller one"
    ):
        diagnose(potential, noise.normal([(1, 1, 1), (3, 2, 2)]), observe, steps=60, step_size=100.0, noise=noise)
