"""Normal distributions against torch.distributions, and the bounds of their parameters."""

import math

import pytest
import torch
from torch.distributions import Normal as Reference
from torch.distributions import kl_divergence

from vaebm.nvae.distributions import Normal, soft_clamp


@pytest.fixture
def parameters() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(5)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_density_sample_and_kl(parameters: list[torch.Tensor], temperature: float) -> None:
    m, ell, other_m, other_ell, eps = parameters
    ours, prior = Normal(m, ell, temperature), Normal(other_m, other_ell)
    reference = Reference(5 * torch.tanh(m / 5), (torch.exp(5 * torch.tanh(ell / 5)) + 0.01) * temperature)
    torch.testing.assert_close(ours.sample(eps), reference.loc + reference.scale * eps)
    torch.testing.assert_close(ours.log_prob(eps), reference.log_prob(eps))
    torch.testing.assert_close(ours.kl(prior), kl_divergence(reference, Reference(prior.mean, prior.sigma)))


def test_parameters_are_bounded() -> None:
    extreme = torch.tensor([-1e9, 0.0, 1e9], dtype=torch.float64)
    normal = Normal(extreme, extreme)
    assert normal.mean.tolist() == [-5.0, 0.0, 5.0]
    assert normal.sigma.tolist() == pytest.approx([math.exp(-5) + 0.01, 1.01, math.exp(5) + 0.01])
    assert soft_clamp(torch.tensor(0.1)) == pytest.approx(0.1, rel=2e-4)


def test_floor_of_log_sigma_raises_what_is_below_it() -> None:
    """After the soft clamp, before the 0.01; the temperature scales what comes out."""
    ell = torch.tensor([-4.0, 0.0, 3.0], dtype=torch.float64)
    free, floored = Normal(ell, ell, 0.5), Normal(ell, ell, 0.5, log_sigma_floor=-2.0)
    assert floored.sigma[0].item() == pytest.approx(0.5 * (math.exp(-2) + 0.01), rel=1e-12)
    assert torch.equal(floored.sigma[1:], free.sigma[1:]) and torch.equal(floored.mean, free.mean)
