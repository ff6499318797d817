"""log Z by both estimators: exact on a linear VAE with a quadratic energy."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from networks import LinearVAE
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vaebm.chain.annealed import annealed_log_weights
from vaebm.config import EvaluationSettings, SamplesSettings
from vaebm.config.evaluation import AnnealedSettings
from vaebm.evaluation.normalizer import Normalized, annealed, importance, log_mean_exp, measure_normalizer
from vaebm.model import NO_CHAIN, VAEBM, Estimates
from vaebm.noise import NoiseSource

MATRIX = torch.tensor([[0.20, 0.05], [-0.10, 0.15], [0.05, -0.20]], dtype=torch.float64)
"""A in x = ½ + ½ (A z + σ ε_x): no pixel saturates."""
SIGMA = 0.05


class Quadratic(nn.Module):
    """E(x) = s (½ dᵀ Q d + bᵀ d) with d = x − ½; its minimum is within [0, 1], so no chain saturates."""

    def __init__(self, scale: float, size: int = 3):
        super().__init__()
        root = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, -1.0], [1.0, 0.0, 2.0]], dtype=torch.float64)[:size]
        self.q, self.b = scale * root @ root.T, scale * torch.tensor([1.0, -0.6, 0.4], dtype=torch.float64)[:size]

    def forward(self, x: Tensor) -> Tensor:
        d = x.flatten(1) - 0.5
        return 0.5 * torch.einsum("bi,ij,bj->b", d, self.q, d) + d @ self.b


class Stub(nn.Module):
    """The energy that a function gives."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class OnePixelVAE(LinearVAE):
    """LinearVAE of one pixel and one latent variable, with its exact posterior: one draw gives log p(x)."""

    def encode(self, x: Tensor) -> list[Tensor]:
        return [2 * x.flatten(1) - 1]

    def forward(self, x: Tensor, noise: NoiseSource, step: int, features: list[Tensor]) -> SimpleNamespace:
        slope, (y,) = self.matrix[0, 0], features
        precision = 1 + (slope / self.sigma) ** 2
        q, p = Normal(slope * y / self.sigma**2 / precision, precision**-0.5), Normal(0.0, 1.0)
        z = q.mean + q.stddev * noise.like([y], step)[0]
        log_q, log_p, kl = q.log_prob(z)[:, 0], p.log_prob(z)[:, 0], kl_divergence(q, p)
        return SimpleNamespace(pixels=self.decode([z[:, :, None, None]])[0], log_q=log_q, log_p=log_p, kl=kl)


def model_and_log_z(scale: float, vae: LinearVAE | None = None) -> tuple[VAEBM, float]:
    """d ~ N(0, C): Z = |1 + C Q|^(−½) exp(½ bᵀ (C⁻¹ + Q)⁻¹ b)."""
    vae = vae or LinearVAE(MATRIX, SIGMA)
    energy, one = Quadratic(scale, len(vae.matrix)), torch.eye(len(vae.matrix), dtype=torch.float64)
    covariance = 0.25 * (vae.matrix @ vae.matrix.T + SIGMA**2 * one)
    tilt = energy.b @ torch.linalg.solve(torch.linalg.inv(covariance) + energy.q, energy.b)
    log_z = 0.5 * tilt - 0.5 * torch.logdet(one + covariance @ energy.q)
    return VAEBM(vae, energy), float(log_z)


def estimators(scale: float) -> tuple[VAEBM, float, Callable[..., object], Callable[..., object]]:
    model, log_z = model_and_log_z(scale)
    settings = AnnealedSettings(chains=400, temperatures=60, step_size=0.3)
    return (
        model, log_z,
        lambda seed, draws=2000: log_mean_exp(importance(model, seed, draws, batch=500)),
        lambda seed: log_mean_exp(annealed(model, seed, settings, batch=400)),
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
    """Jensen: the mean over seeds of ln of few weights is below log Z, and the weights' mean is not.

    So an estimate is rarely far above log Z (Markov), which bounds log Z from below.
    """
    _, log_z, by_draws, _ = estimators(50.0)
    found = torch.tensor([by_draws(seed, 8).log_z - log_z for seed in range(300)], dtype=torch.float64)
    assert found.mean() < -4 * found.std() / math.sqrt(300)
    ratios = found.exp()
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / math.sqrt(300)
    assert (found > math.log(20)).double().mean() < 0.05


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


SETTINGS = EvaluationSettings.model_validate(
    {"extractor": "inception", "elbo_samples": 3, "steps": {"images": 8, "counts": [0]}}
)
BOTH = SETTINGS.model_copy(update={"annealed": AnnealedSettings(chains=20, temperatures=2)})
HELD_OUT = Estimates(None, torch.tensor([5.0, 7.0]).double(), None, torch.tensor([1.0, 2.0]).double())


def measured(
    model: VAEBM, settings: EvaluationSettings = SETTINGS, held_out: Estimates = HELD_OUT, batch: int = 200
) -> Normalized:
    return measure_normalizer(model, settings, held_out, 0, SamplesSettings(count=400, batch=batch, chain=NO_CHAIN))


def test_log_likelihood_is_the_score_less_log_z_of_as_many_draws_as_samples() -> None:
    """Annealing is measured if it is set; a strong energy leaves few effective samples, and no value."""
    model, log_z = model_and_log_z(1.0)
    found = measured(model)
    (figure,) = found.metrics.values()
    (record,) = found.records.values()
    assert figure.value == pytest.approx((4.5 - record.log_z) / 3) and record.log_z == pytest.approx(log_z, abs=0.05)
    assert record.draws == 400

    none = measured(model_and_log_z(1000.0)[0], BOTH)
    assert none.metrics == {} and none.without.keys() == none.records.keys()
    assert list(none.records) == ["log-likelihood-energy", "log-likelihood-annealed"]


def test_log_likelihood_of_an_energy_of_noisy_images_is_a_density() -> None:
    """Its sum over all grey levels is 1, with E of the image itself. The scores average E over pixel noise, which
    takes the factor exp(−σ² tr Q / 8) from it to leading order: 0.86 here.
    """
    model, log_z = model_and_log_z(50.0, OnePixelVAE(torch.tensor([[0.2]], dtype=torch.float64), SIGMA))
    model.positives = "matched"
    levels = torch.arange(256, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    estimates = model.estimate(levels, seed=0, draws=20)
    assert estimates.importance is not None and estimates.clean_energy is not None
    log_p = estimates.importance - estimates.clean_energy - log_z
    assert float(log_p.exp().sum() * 2 / 255) == pytest.approx(1.0, abs=1e-6)
    assert float((estimates.score - log_z).exp().sum() * 2 / 255) == pytest.approx(0.86, abs=0.03)
    found = measured(model, held_out=estimates)
    (figure,), (record,) = found.metrics.values(), found.records.values()
    assert figure.value == pytest.approx(float(log_p.mean()) + log_z - record.log_z)


@pytest.mark.parametrize("count", [19, 21])
def test_a_value_needs_twenty_effective_samples(count: int) -> None:
    """`count` of 400 weights are 1 and the others 0: the effective sample size. Below, log Z has a lower bound."""
    model = VAEBM(LinearVAE(MATRIX, SIGMA), Stub(lambda x: 1000.0 * (torch.arange(len(x)) >= count)))
    found = measured(model, batch=400)
    assert found.records["log-likelihood-energy"].effective == pytest.approx(count)
    assert (found.metrics == {}) == (count == 19) != (found.without == {})
    if count == 19:  # ln (19 / 400) − ln 20 = −6.04, rounded down
        expected = "the effective sample size of the 400 draws is 19, below 20; log Z is at least -6.1 with 95 %"
        assert found.without["log-likelihood-energy"].startswith(expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_energies_that_are_not_finite_leave_a_reason(value: float) -> None:
    """Neither an exception, which would cost the other figures, nor a value."""
    quadratic = Quadratic(1.0)
    energy = Stub(lambda x: quadratic(x).where(x.flatten(1)[:, 0] < 0.6, value))
    found = measured(VAEBM(LinearVAE(MATRIX, SIGMA), energy), BOTH)
    assert found.metrics == {} == found.records and len(found.without) == 2
    for reason, draws in zip(found.without.values(), (400, 20), strict=True):
        assert reason.endswith(f"of the {draws} draws of log Z have weights that are not finite") and reason[0] != "0"


def test_an_energy_on_noise_leaves_a_reason() -> None:
    model = VAEBM(LinearVAE(MATRIX, SIGMA), Quadratic(1.0))
    model.prior = nn.Identity()  # type: ignore[assignment]
    reason = "log Z is not estimated with an energy on noise"
    assert measured(model) == Normalized({}, {}, {"log-likelihood-energy": reason})
    assert measured(model, BOTH).without == dict.fromkeys(["log-likelihood-energy", "log-likelihood-annealed"], reason)
