"""Normal distributions against torch.distributions, and the Gaussian decoder's clamps."""

import math

import pytest
import torch
from torch.distributions import Normal as Reference
from torch.distributions import kl_divergence

from vaebm.nvae.distributions import Normal, PixelNormal, soft_clamp


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


def test_pixels_are_a_density_of_the_rescaled_image() -> None:
    """∫ p(y) dy = 1 over y = 2x − 1, not over x."""
    logits = torch.tensor([0.2, -1.5], dtype=torch.float64).reshape(1, 2, 1, 1)
    y = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    density = PixelNormal(logits).log_prob(((y + 1) / 2).reshape(-1, 1, 1, 1)).exp().flatten()
    assert torch.trapezoid(density, y).item() == pytest.approx(1.0, abs=1e-9)


def test_pixel_mean_may_leave_the_range_and_samples_may_not() -> None:
    logits = torch.cat([torch.full((1, 1, 4, 4), 2.0), torch.zeros(1, 1, 4, 4)], dim=1)
    pixels = PixelNormal(logits)
    assert (pixels.mean > 1).all()
    eps = torch.linspace(-4, 4, 16).reshape(1, 1, 4, 4).requires_grad_()
    sample = pixels.sample(eps)
    assert sample.min() >= 0 and sample.max() <= 1
    (gradient,) = torch.autograd.grad(sample.sum(), eps)
    assert ((gradient == 0) == ((sample == 0) | (sample == 1))).all()  # saturated pixels, and they alone, have none


def test_floors_of_log_sigma() -> None:
    """The chain's density floors log σ at −2; the trained density only where the settings say so."""
    logits = torch.cat([torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), -4.0)], dim=1)
    middle = torch.full((1, 1, 1, 1), 0.5)

    def sigma(log_density: torch.Tensor) -> float:
        return math.exp(-log_density.item()) / math.sqrt(2 * math.pi)

    assert sigma(PixelNormal(logits).log_prob(middle)) == pytest.approx(math.exp(5 * math.tanh(-0.8)) + 0.01, rel=1e-5)
    assert sigma(PixelNormal(logits).chain_log_prob(middle)) == pytest.approx(math.exp(-2) + 0.01, rel=1e-5)
    assert PixelNormal(logits, -2.0).log_prob(middle) == PixelNormal(logits).chain_log_prob(middle)
