"""log Z by both estimators: exact on a linear VAE with a quadratic energy."""

import math
from collections.abc import Callable

import pytest
import torch
from networks import LinearVAE
from torch import Tensor, nn

from vaebm.chain.annealed import annealed_log_weights
from vaebm.config import EvaluationSettings
from vaebm.config.evaluation import AnnealedSettings
from vaebm.evaluation.normalizer import annealed, importance, log_mean_exp, measure_normalizer
from vaebm.model import VAEBM, Estimates
from vaebm.noise import NoiseSource

MATRIX = torch.tensor([[0.20, 0.05], [-0.10, 0.15], [0.05, -0.20]], dtype=torch.float64)
"""A in x = ½ + ½ (A z + σ ε_x): no pixel saturates."""
SIGMA = 0.05


class Quadratic(nn.Module):
    """E(x) = s (½ dᵀ Q d + bᵀ d) with d = x − ½; its minimum is within [0, 1], so no chain saturates."""

    def __init__(self, scale: float):
        super().__init__()
        root = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, -1.0], [1.0, 0.0, 2.0]], dtype=torch.float64)
        self.q, self.b = scale * root @ root.T, scale * torch.tensor([1.0, -0.6, 0.4], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        d = x.flatten(1) - 0.5
        return 0.5 * torch.einsum("bi,ij,bj->b", d, self.q, d) + d @ self.b


def model_and_log_z(scale: float) -> tuple[VAEBM, float]:
    """d ~ N(0, C): Z = |1 + C Q|^(−½) exp(½ bᵀ (C⁻¹ + Q)⁻¹ b)."""
    energy = Quadratic(scale)
    one = torch.eye(3, dtype=torch.float64)
    covariance = 0.25 * (MATRIX @ MATRIX.T + SIGMA**2 * one)
    tilt = energy.b @ torch.linalg.solve(torch.linalg.inv(covariance) + energy.q, energy.b)
    log_z = 0.5 * tilt - 0.5 * torch.logdet(one + covariance @ energy.q)
    return VAEBM(LinearVAE(MATRIX, SIGMA), energy), float(log_z)


def estimators(scale: float) -> tuple[VAEBM, float, Callable[..., object], Callable[..., object]]:
    model, log_z = model_and_log_z(scale)
    settings = AnnealedSettings(chains=400, temperatures=60, step_size=0.3)
    return (
        model, log_z,
        lambda seed, draws=2000: importance(model, seed, draws, batch=500),
        lambda seed: annealed(model, seed, settings, batch=400),
    )  # fmt: skip


@pytest.mark.parametrize("scale", [10.0, 50.0])
def test_both_estimators_are_exact_within_their_error(scale: float) -> None:
    """The stated errors are those over seeds; for the strong energy annealing has most of its chains, draws few."""
    _, log_z, by_draws, by_chains = estimators(scale)
    for estimator, share in ((by_draws, 0.05), (by_chains, 0.4)):
        found = [estimator(seed) for seed in range(6)]
        errors = torch.tensor([(one.log_z - log_z) / one.standard_error for one in found])
        assert errors.abs().max() < 4 and 0.2 < errors.square().mean() < 4
        assert all(one.effective > share * one.draws and one.bias == "low" for one in found)
    assert by_chains(0).effective / 400 > by_draws(0).effective / 2000


def test_the_estimate_is_biased_low() -> None:
    """Jensen: the mean over seeds of ln of few weights is below log Z, and the weights' mean is not."""
    _, log_z, by_draws, _ = estimators(50.0)
    found = torch.tensor([by_draws(seed, 8).log_z - log_z for seed in range(300)], dtype=torch.float64)
    assert found.mean() < -4 * found.std() / math.sqrt(300)
    ratios = found.exp()
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / math.sqrt(300)


def test_weights_do_not_depend_on_the_batch_and_one_temperature_is_importance_sampling() -> None:
    model, _ = model_and_log_z(1.0)
    potential, noise = model.chain_potential(), NoiseSource(3, "annealed", range(6))
    eps_z, eps_x = model.initial_noise(noise)
    eps = [*eps_z, eps_x]
    whole = annealed_log_weights(potential, eps, temperatures=5, step_size=0.5, noise=noise)
    part = annealed_log_weights(
        potential, [each[2:4] for each in eps], temperatures=5, step_size=0.5, noise=noise.at(range(2, 4))
    )
    torch.testing.assert_close(whole[2:4], part, rtol=1e-12, atol=1e-12)
    single = annealed_log_weights(potential, eps, temperatures=1, step_size=0.5, noise=noise)
    torch.testing.assert_close(single, -model.energy(model.nvae.decode(eps_z)[0].sample(eps_x)))


def test_effective_sample_size() -> None:
    equal, one = log_mean_exp(torch.full((50,), -700.0)), log_mean_exp(torch.tensor([0.0] + [-900.0] * 49))
    assert equal.log_z == pytest.approx(-700.0) and equal.effective == pytest.approx(50.0)
    assert equal.standard_error == pytest.approx(0.0, abs=1e-6)
    assert one.effective == pytest.approx(1.0) and one.log_z == pytest.approx(-math.log(50))


def test_a_figure_needs_enough_effective_samples() -> None:
    """log p(x) of held-out images is the score less log Z, or a reason; annealing is measured if it is set."""
    settings = EvaluationSettings.model_validate(
        {"extractor": "inception", "elbo_samples": 3, "steps": {"images": 400, "counts": [0]}}
    )
    score = Estimates(None, torch.tensor([5.0, 7.0]).double(), torch.tensor([1.0, 2.0]).double())
    model, log_z = model_and_log_z(1.0)

    found = measure_normalizer(model, settings, score, 0, 200)
    (figure,) = found.metrics.values()
    (record,) = found.records.values()
    assert figure.value == pytest.approx((4.5 - record.log_z) / 3) and record.log_z == pytest.approx(log_z, abs=0.05)
    strong, _ = model_and_log_z(1000.0)

    chosen = settings.model_copy(update={"annealed": AnnealedSettings(chains=20, temperatures=2)})
    none = measure_normalizer(strong, chosen, score, 0, 200)
    assert none.metrics == {} and none.without.keys() == none.records.keys()
    assert list(none.records) == ["log-likelihood-energy", "log-likelihood-annealed"]
    assert "the effective sample size of the 400 draws is" in none.without["log-likelihood-energy"]
