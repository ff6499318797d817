"""Estimates of log p(x), against a model whose log p(x) is known."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from vaebm.config import NVAENetworkSettings
from vaebm.evaluation import likelihood
from vaebm.evaluation.likelihood import estimate
from vaebm.model import VAEBM
from vaebm.nvae.model import NVAE
from vaebm.runtime import seeded

SIGMA = 0.5


class Pixels(NamedTuple):
    """N(z, SIGMA²) for every pixel of y = 2x − 1, as the NVAE's pixel distribution is used."""

    z: torch.Tensor

    def log_prob(self, x):
        return Normal(self.z, SIGMA).log_prob(2 * x - 1)


class Output(NamedTuple):
    pixels: Pixels
    log_q: torch.Tensor
    log_p: torch.Tensor
    kl: torch.Tensor


class LinearGaussian(nn.Module):
    """z ~ N(0, 1), y | z ~ N(z, SIGMA²), one latent a pixel; its posterior, and its posterior moved by `error`."""

    def __init__(self, error=0.0):
        super().__init__()
        self.error = error

    def posterior(self, x):
        precision = 1 + 1 / SIGMA**2
        return Normal((2 * x - 1) / SIGMA**2 / precision, precision**-0.5)

    def forward(self, x, noise, step):
        x = x.double()
        exact = self.posterior(x)
        q, p = Normal(exact.mean + self.error, exact.stddev), Normal(0.0, 1.0)
        z = q.mean + q.stddev * noise.like([x], step)[0]
        total = (1, 2, 3)
        return Output(Pixels(z), q.log_prob(z).sum(total), p.log_prob(z).sum(total), kl_divergence(q, p).sum(total)[:, None])

    def log_prob(self, x):
        return Normal(0.0, math.sqrt(1 + SIGMA**2)).log_prob(2 * x.double() - 1).sum((1, 2, 3))


@pytest.fixture
def images():
    return torch.randint(0, 256, (12, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_with_the_exact_posterior_one_draw_gives_log_p(images):
    """p(x|z) p(z) / q(z|x) is then p(x) for every z: the density is that of y = 2x − 1, summed over pixels and channels."""
    model = LinearGaussian()
    found = estimate(model, images, seed=0, samples=1)
    assert torch.allclose(found.importance, model.log_prob(images / 255), atol=1e-5)  # x is rounded to float32


def test_elbo_lacks_the_divergence_from_the_posterior(images):
    """log p(x) − KL(q ‖ posterior), in closed form; the mean over the draws within 5 of its standard errors."""
    model, draws = LinearGaussian(error=0.3), 400
    found = estimate(model, images, seed=0, samples=draws)
    exact = model.posterior(images.double() / 255)
    gap = kl_divergence(Normal(exact.mean + 0.3, exact.stddev), exact).sum((1, 2, 3))
    expected = model.log_prob(images / 255) - gap
    # Var of −(y − z)²/2σ² for z = m + s ε: (d s/σ²)² + s⁴/2σ⁴ with d = y − m, per pixel
    d, s = 2 * images.double() / 255 - 1 - exact.mean - 0.3, exact.stddev
    error = ((d * s / SIGMA**2).square() + s**4 / (2 * SIGMA**4)).sum((1, 2, 3)).div(draws).sqrt()
    assert ((found.elbo - expected).abs() < 5 * error).all()
    # the importance-weighted bound closes most of the gap (of 0.9 nats)
    assert gap.min() > 0.8
    assert ((found.importance - model.log_prob(images / 255)).abs() < 0.3 * gap).all()


def test_draws_depend_on_seed_and_place_and_not_on_the_batch(images, monkeypatch):
    model = LinearGaussian(error=0.3)
    found = estimate(model, images, seed=3, samples=2)
    monkeypatch.setattr(likelihood, "BATCH", 5)
    again = estimate(model, images, seed=3, samples=2)
    assert torch.equal(found.elbo, again.elbo) and torch.equal(found.importance, again.importance)
    assert not torch.equal(found.elbo, estimate(model, images, seed=4, samples=2).elbo)
    alike = estimate(model, images[:1].expand(3, -1, -1, -1), seed=3, samples=2).elbo
    assert len(set(alike.tolist())) == 3, "equal images in other places have other draws"


def test_scores_are_those_of_the_public_interface(images):
    """The AUROC is that of `VAEBM.score`: same draws, same estimate, for an NVAE with several groups."""
    settings = NVAENetworkSettings(
        channels_encoder=4, channels_decoder=4, groups=[2, 1], latents=2, preprocess_blocks=1, preprocess_cells=1, postprocess_cells=1,
        cells_encoder=1, cells_decoder=1, architecture="res_bnswish",
    )  # fmt: skip
    with seeded(0):
        nvae = NVAE(settings, (1, 8, 8)).eval().requires_grad_(False)
    x = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = estimate(nvae, x, seed=2, samples=3)
    public = VAEBM(nvae, None).score(x / 255, seed=2, importance_samples=3)
    # about −100 nats from sums of 64 float32 terms, added up in another order
    assert torch.allclose(found.importance.float(), public, atol=1e-3)
    assert (found.elbo.isfinite()).all()
