"""The chain against closed forms: the effect of Langevin steps on Gaussians is known exactly."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vaebm.chain.langevin import langevin, transitions
from vaebm.noise import NoiseSource

PRECISION = torch.tensor([[2.0, 0.8, -0.3], [0.8, 1.0, 0.4], [-0.3, 0.4, 3.0]], dtype=torch.float64)


def quadratic(precision: float):  # type: ignore[no-untyped-def]
    return lambda eps: 0.5 * precision * sum(part.square().flatten(1).sum(1) for part in eps)


def gaussian(eps: Sequence[Tensor]) -> Tensor:
    """U = ½ εᵀ P ε over two groups of one and two variables."""
    joined = torch.cat([part.flatten(1) for part in eps], dim=1)
    return 0.5 * torch.einsum("bi,ij,bj->b", joined, PRECISION.to(joined.dtype), joined)


def quartic(eps: Sequence[Tensor]) -> Tensor:
    """A potential that is not quadratic and couples two groups."""
    return sum(part.pow(4).flatten(1).sum(1) for part in eps) + eps[0].flatten(1).sum(1) * eps[1].flatten(1).sum(1)


def test_one_step_is_the_formula() -> None:
    eps = [torch.randn(3, 2, 2), torch.randn(3, 5)]
    noise = NoiseSource(0, "chain", range(3))
    (moved, moved_x) = langevin(quadratic(3.0), eps, steps=1, step_size=0.1, noise=noise)
    for before, after, omega in zip(eps, (moved, moved_x), noise.like(eps, 1), strict=True):
        torch.testing.assert_close(after, before - 0.05 * 3.0 * before + math.sqrt(0.1) * omega)


def test_stationary_covariance() -> None:
    """U = ½ εᵀ P ε: ε ← A ε + √η ω with A = 1 − η/2 P, so the stationary Σ = A Σ A + η = (P − η/4 P²)⁻¹, not P⁻¹."""
    step_size, chains = 0.5, 8000
    exact, biased = torch.linalg.inv(PRECISION), torch.linalg.inv(PRECISION - 0.25 * step_size * PRECISION @ PRECISION)
    noise = NoiseSource(0, "chain", range(chains))
    (normal,) = noise.normal([(3,)], dtype=torch.float64)
    eps = normal @ torch.linalg.cholesky(exact).T
    moved = langevin(gaussian, [eps[:, :1], eps[:, 1:]], steps=40, step_size=step_size, noise=noise)

    def deviation(covariance: Tensor) -> float:
        """Largest element by which the chains' covariance, in units of another, differs from the identity."""
        whiten = torch.linalg.inv(torch.linalg.cholesky(covariance))
        return float((whiten @ torch.cov(torch.cat(moved, dim=1).T) @ whiten.T - torch.eye(3)).abs().max())

    # standard error of a variance of one; the slowest direction has forgotten its start to 1e-2 of the bias
    error = math.sqrt(2 / chains)
    assert deviation(biased) < 4 * error
    assert deviation(exact) > 20 * error


def test_acceptance_is_that_of_metropolis_and_hastings() -> None:
    """The acceptance agrees with its definition by the proposals' densities, for a potential that is not quadratic."""
    step_size, noise = 0.2, NoiseSource(0, "chain", range(50))
    start = noise.normal([(2, 2), (3,)], dtype=torch.float64)
    (transition,) = transitions(quartic, start, steps=1, step_size=step_size, noise=noise)

    def flat(eps: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.flatten(1) for part in eps], dim=1)

    def proposal_from(eps: Sequence[Tensor]) -> MultivariateNormal:
        leaves = [part.clone().requires_grad_() for part in eps]
        gradient = torch.autograd.grad(quartic(leaves).sum(), leaves)
        return MultivariateNormal(
            flat(eps) - 0.5 * step_size * flat(gradient), step_size * torch.eye(7, dtype=torch.float64)
        )

    end = transition.state.eps
    log_ratio = (
        quartic(start)
        - quartic(end)
        + proposal_from(end).log_prob(flat(start))
        - proposal_from(start).log_prob(flat(end))
    )
    expected = log_ratio.clamp(max=0).exp()
    assert 0.1 < expected.mean() < 0.9
    torch.testing.assert_close(transition.acceptance, expected, rtol=1e-10, atol=0)


def test_acceptance_is_zero_outside_the_support() -> None:
    """U = ½ ε² − ln ε is undefined for ε < 0."""
    inside = lambda eps: (0.5 * eps[0].square() - eps[0].log()).sum(1)  # noqa: E731
    noise, start = NoiseSource(0, "chain", range(200)), [torch.ones(200, 1)]
    (first,) = transitions(inside, start, steps=1, step_size=0.5, noise=noise)
    outside = first.state.eps[0][:, 0] < 0
    assert 5 < outside.sum() < 50
    assert (first.acceptance[outside] == 0).all() and (first.acceptance[~outside] > 0).all()


def test_chains_do_not_see_each_other() -> None:
    """A batch of chains and each chain alone end in the same place, up to the rounding of a batched operation."""
    noise = NoiseSource(0, "chain", range(4))
    eps = noise.normal([(3,), (2,)], dtype=torch.float64)
    together = langevin(quartic, eps, steps=5, step_size=0.2, noise=noise)
    for k in range(4):
        own = [part[k : k + 1] for part in eps]
        alone = langevin(quartic, own, steps=5, step_size=0.2, noise=noise.at([k]))
        torch.testing.assert_close([part[k : k + 1] for part in together], alone, rtol=1e-12, atol=0)


def test_transitions_are_the_chain_with_one_evaluation_more() -> None:
    noise, count = NoiseSource(0, "chain", range(4)), 0
    start = noise.normal([(3,), (2,)])

    def counted(eps: Sequence[Tensor]) -> Tensor:
        nonlocal count
        count += 1
        return quartic(eps)

    states: list[list[Tensor]] = []
    end = langevin(counted, start, steps=6, step_size=0.02, noise=noise, callback=states.append)
    assert count == 6
    count = 0
    steps = list(transitions(counted, start, steps=6, step_size=0.02, noise=noise))
    assert count == 7 and len(states) == 6
    for watched, step in zip(states, steps, strict=True):
        assert all(torch.equal(*pair) for pair in zip(watched, step.state.eps, strict=True))
    assert all(torch.equal(*pair) for pair in zip(end, states[-1], strict=True))


def test_input_is_left_alone_and_steps_are_watched() -> None:
    eps = [torch.randn(2, 3)]
    before = eps[0].clone()
    seen: list[torch.Tensor] = []
    (end,) = langevin(
        quadratic(1.0),
        eps,
        steps=3,
        step_size=0.1,
        noise=NoiseSource(0, "chain", range(2)),
        callback=lambda state: seen.append(state[0].clone()),
    )
    assert torch.equal(eps[0], before) and not eps[0].requires_grad
    assert len(seen) == 3 and torch.equal(seen[-1], end)


def test_no_steps_change_nothing() -> None:
    eps = [torch.randn(2, 3)]
    assert torch.equal(
        langevin(quadratic(1.0), eps, steps=0, step_size=0.1, noise=NoiseSource(0, "chain", range(2)))[0], eps[0]
    )
