"""The chain against closed forms: what unadjusted Langevin steps do to Gaussians is known exactly."""

import math

import pytest
import torch

from vaebm.ebm.langevin import langevin
from vaebm.noise import NoiseSource


def quadratic(precision: float):  # type: ignore[no-untyped-def]
    return lambda eps: 0.5 * precision * sum(part.square().flatten(1).sum(1) for part in eps)


def test_one_step_is_the_formula() -> None:
    eps = [torch.randn(3, 2, 2), torch.randn(3, 5)]
    noise = NoiseSource(0, "chain", range(3))
    (moved, moved_x) = langevin(quadratic(3.0), eps, steps=1, step_size=0.1, noise=noise)
    for before, after, omega in zip(eps, (moved, moved_x), noise.like(eps, 1), strict=True):
        torch.testing.assert_close(after, before - 0.05 * 3.0 * before + math.sqrt(0.1) * omega)


def test_stationary_variance_has_the_predicted_bias() -> None:
    """U = λ ε²/2: ε ← (1 − ηλ/2) ε + √η ω has the variance η / (1 − (1 − ηλ/2)²) = 1 / (λ (1 − ηλ/4))."""
    precision, step_size, chains, dimensions = 2.0, 0.5, 500, 40
    start = [torch.zeros(chains, dimensions)]
    (end,) = langevin(quadratic(precision), start, steps=60, step_size=step_size, noise=NoiseSource(0, "chain", range(chains)))
    expected = 1 / (precision * (1 - step_size * precision / 4))
    error = expected * math.sqrt(2 / (chains * dimensions))  # standard error of a variance
    assert end.var().item() == pytest.approx(expected, abs=4 * error)
    assert abs(expected - 1 / precision) > 8 * error  # the test would see a chain without the bias


def test_chains_do_not_see_each_other() -> None:
    """A batch of chains and each chain alone end in the same place."""
    eps = [torch.randn(4, 3)]
    energy = lambda parts: parts[0].pow(4).sum(1)  # noqa: E731
    (together,) = langevin(energy, eps, steps=5, step_size=0.01, noise=NoiseSource(0, "chain", range(4)))
    alone = [langevin(energy, [eps[0][k : k + 1]], steps=5, step_size=0.01, noise=NoiseSource(0, "chain", [k]))[0] for k in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_input_is_left_alone_and_steps_are_watched() -> None:
    eps = [torch.randn(2, 3)]
    before = eps[0].clone()
    seen: list[torch.Tensor] = []
    (end,) = langevin(quadratic(1.0), eps, steps=3, step_size=0.1, noise=NoiseSource(0, "chain", range(2)), watch=lambda state: seen.append(state[0].clone()))
    assert torch.equal(eps[0], before) and not eps[0].requires_grad
    assert len(seen) == 3 and torch.equal(seen[-1], end)


def test_no_steps_change_nothing() -> None:
    eps = [torch.randn(2, 3)]
    assert torch.equal(langevin(quadratic(1.0), eps, steps=0, step_size=0.1, noise=NoiseSource(0, "chain", range(2)))[0], eps[0])
