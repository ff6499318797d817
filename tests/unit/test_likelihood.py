"""Estimates of log p(x), against a model whose log p(x) is known and against sums over all images."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from vaebm.config import NVAENetworkSettings
from vaebm.model import VAEBM, scores
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.system.device import seeded
from vaebm.system.errors import UserError

SIGMA = 0.5

SMALL = {
    "channels_encoder": 4, "channels_decoder": 4, "latents": 2, "preprocess_blocks": 1, "preprocess_cells": 1,
    "postprocess_cells": 1,
    "cells_encoder": 1, "cells_decoder": 1, "architecture": "res_bnswish",
}  # fmt: skip
"""A small NVAE."""


class Pixels(NamedTuple):
    """N(z, SIGMA²) for every pixel of y = 2x − 1, as the NVAE's pixel distribution is used."""

    z: torch.Tensor

    def log_likelihood(self, x):
        return Normal(self.z, SIGMA).log_prob(2 * x - 1).sum((1, 2, 3))


class Output(NamedTuple):
    pixels: Pixels
    log_q: torch.Tensor
    log_p: torch.Tensor
    kl: torch.Tensor


class LinearGaussian(NVAE):
    """z ~ N(0, 1), y | z ~ N(z, SIGMA²), one latent a pixel; its posterior, and its posterior moved by `error`."""

    def __init__(self, error=0.0):
        nn.Module.__init__(self)
        self.error, self.shape = error, (1, 2, 2)

    def as_input(self, images, noise):
        return images.double() / 255

    def encode(self, x):
        precision = 1 + 1 / SIGMA**2
        return Normal((2 * x - 1) / SIGMA**2 / precision, precision**-0.5)

    def forward(self, x, noise, step, features):
        q, p = Normal(features.mean + self.error, features.stddev), Normal(0.0, 1.0)
        z = q.mean + q.stddev * noise.like([x], step)[0]
        total = (1, 2, 3)
        return Output(
            Pixels(z), q.log_prob(z).sum(total), p.log_prob(z).sum(total), kl_divergence(q, p).sum(total)[:, None]
        )

    def log_prob(self, x):
        return Normal(torch.zeros_like(x), math.sqrt(1 + SIGMA**2)).log_prob(2 * x - 1).sum((1, 2, 3))


@pytest.fixture
def images():
    return torch.randint(0, 256, (12, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_with_the_exact_posterior_one_draw_gives_log_p(images):
    """p(x|z) p(z) / q(z|x) is then p(x) for every z: the density is that of y = 2x − 1, summed over pixels and
    channels.
    """
    model = LinearGaussian()
    found = VAEBM(model, None).estimate(images, seed=0, draws=1)
    assert torch.allclose(found.importance, model.log_prob(images.double() / 255), rtol=1e-12)


def test_elbo_lacks_the_divergence_from_the_posterior(images):
    """log p(x) − KL(q ‖ posterior), in closed form; the mean over the draws within 5 of its standard errors."""
    model, draws = LinearGaussian(error=0.3), 400
    found = VAEBM(model, None).estimate(images, seed=0, draws=draws)
    exact = model.encode(images.double() / 255)
    gap = kl_divergence(Normal(exact.mean + 0.3, exact.stddev), exact).sum((1, 2, 3))
    expected = model.log_prob(images.double() / 255) - gap
    # Var of −(y − z)²/2σ² for z = m + s ε: (d s/σ²)² + s⁴/2σ⁴ with d = y − m, per pixel
    d, s = 2 * images.double() / 255 - 1 - exact.mean - 0.3, exact.stddev
    error = ((d * s / SIGMA**2).square() + s**4 / (2 * SIGMA**4)).sum((1, 2, 3)).div(draws).sqrt()
    assert ((found.elbo - expected).abs() < 5 * error).all()
    # the importance-weighted bound closes most of the gap (of 0.9 nats)
    assert gap.min() > 0.8
    assert ((found.importance - model.log_prob(images.double() / 255)).abs() < 0.3 * gap).all()


def test_importance_weighted_bound_rises_to_log_p():
    """A posterior moved by δ makes the log weight of an image normal, with variance A = D δ² / s² (of D latents of
    deviation s) and mean log p(x) − A/2. So the weights' mean is p(x), its relative variance over K draws (e^A − 1) /
    K, and the bound's distance from log p(x) half of that, for large K.
    """
    count, model = 300, LinearGaussian(error=0.2)
    images = torch.randint(0, 256, (count, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact, a = model.log_prob(images.double() / 255), 4 * 0.2**2 * (1 + 1 / SIGMA**2)
    gaps = {
        samples: (VAEBM(model, None).estimate(images, seed=0, draws=samples).importance - exact).mean().item()
        for samples in (1, 3, 10, 100)
    }
    assert list(gaps.values()) == sorted(gaps.values())
    assert gaps[1] == pytest.approx(-a / 2, abs=4 * math.sqrt(a / count))
    relative = math.expm1(a) / 100
    # the next term of the logarithm's expansion is of the order of the square of that variance
    assert gaps[100] == pytest.approx(-relative / 2, abs=4 * math.sqrt(relative / count) + 3 * relative**2)
    assert -gaps[100] < 0.05 * -gaps[1]


@pytest.mark.parametrize(
    ("changes", "colours", "repeats"),
    [
        ({"decoder": "bernoulli", "groups": [1], "flows": 1}, 1, 1000),
        ({"decoder": "bernoulli", "groups": [2], "residual_posterior": False}, 1, 1000),
        ({"decoder": "logistic_mixture", "groups": [2], "flows": 1, "mixtures": 2, "bits": 1}, 3, 8),
    ],
)
def test_probabilities_of_all_images_sum_to_one(changes, colours, repeats):
    """p(x|z) p(z) / q(z|x) is p(x) in the mean over draws: decoder, priors, posteriors and flows make one distribution
    of the images.

    Every image of 2×2 black or white pixels (of each colour) once, with draws of its own for each repeat; the error of
    the sum is that of the repeats' means.
    """
    settings = NVAENetworkSettings(**SMALL | {"latents": 1} | changes)
    with seeded(0):
        nvae = NVAE(settings, (colours, 2, 2)).double().eval().requires_grad_(False)
    bits = 4 * colours
    every = ((torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1).to(torch.uint8).reshape(
        -1, colours, 2, 2
    ) * 255
    found = VAEBM(nvae, None).estimate(every.repeat(repeats, 1, 1, 1), seed=0, draws=1)
    probability = found.importance.exp().reshape(repeats, -1)
    error = (probability.var(0) / repeats).sum().sqrt().item()
    assert error < 0.01 and probability.mean(0).sum().item() == pytest.approx(1.0, abs=4 * error)


def test_draws_depend_on_seed_and_place_and_not_on_the_batch(images, monkeypatch):
    model = LinearGaussian(error=0.3)
    found = VAEBM(model, None).estimate(images, seed=3, draws=2)
    monkeypatch.setattr(scores, "BATCH", 5)
    again = VAEBM(model, None).estimate(images, seed=3, draws=2)
    assert torch.equal(found.elbo, again.elbo) and torch.equal(found.importance, again.importance)
    assert not torch.equal(found.elbo, VAEBM(model, None).estimate(images, seed=4, draws=2).elbo)
    alike = VAEBM(model, None).estimate(images[:1].expand(3, -1, -1, -1), seed=3, draws=2).elbo
    assert len(set(alike.tolist())) == 3, "equal images in other places have other draws"


@pytest.mark.parametrize(
    ("most", "pixels", "sizes"), [(5, 10**6, [5, 2]), (1000, 3 * 64, [3, 3, 1]), (1000, 1, [1] * 7)]
)
def test_a_batch_has_at_most_so_many_images_and_pixels(monkeypatch, most, pixels, sizes):
    with seeded(0):
        nvae = NVAE(NVAENetworkSettings(**SMALL), (1, 8, 8)).eval().requires_grad_(False)
    monkeypatch.setattr(scores, "BATCH", most)
    monkeypatch.setattr(scores, "PIXELS", pixels)
    found, encode = [], NVAE.encode
    monkeypatch.setattr(NVAE, "encode", lambda self, x: found.append(len(x)) or encode(self, x))
    VAEBM(nvae, None).estimate(torch.rand(7, 1, 8, 8))
    assert found == sizes


def test_draws_share_one_pass_of_the_encoder(monkeypatch):
    with seeded(0):
        nvae = NVAE(NVAENetworkSettings(**SMALL | {"groups": [2, 1]}), (1, 8, 8)).eval().requires_grad_(False)
    x, noise, calls = torch.rand(3, 1, 8, 8), NoiseSource(0, "test", range(3)), []
    encode = nvae.encode
    monkeypatch.setattr(nvae, "encode", lambda x: calls.append(len(x)) or encode(x))
    shared, alone = nvae(x, noise=noise, step=2, features=encode(x)), nvae(x, noise=noise, step=2)
    assert torch.equal(shared.pixels.mean, alone.pixels.mean) and torch.equal(shared.kl, alone.kl) and calls == [3]
    VAEBM(nvae, None).estimate(x, draws=4)
    assert calls == [3, 3]
    with pytest.raises(UserError, match=r"features: expected .* these 3 images, 3 tensors, found tensors of \[3, 3\]"):
        nvae(x, noise=noise, features=encode(x)[:2])


def test_scores_are_those_of_the_public_interface(images):
    """The AUROC is that of `VAEBM.score`: same draws, same estimate, for an NVAE with several groups."""
    with seeded(0):
        nvae = NVAE(NVAENetworkSettings(**SMALL | {"groups": [2, 1]}), (1, 8, 8)).eval().requires_grad_(False)
    x = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = VAEBM(nvae, None).estimate(x, seed=2, draws=3)
    public = VAEBM(nvae, None).score(x / 255, seed=2, importance_samples=3)
    # about −100 nats from sums of 64 float32 terms, added up in another order
    assert torch.allclose(found.importance.float(), public, atol=1e-3)
    assert (found.elbo.isfinite()).all()


def test_score_of_grey_images_under_a_bernoulli_decoder_is_that_of_the_drawn_ones():
    """Grey values are outside the decoder's support: as in evaluation, each pixel is drawn white with probability x."""
    with seeded(0):
        nvae = NVAE(NVAENetworkSettings(**SMALL | {"groups": [1], "decoder": "bernoulli"}), (1, 8, 8))
    model = VAEBM(nvae.eval().requires_grad_(False), None)
    grey = torch.full((6, 1, 8, 8), 0.5)
    drawn = nvae.as_input(grey, NoiseSource(5, "score input", range(6)))
    assert 0.3 < drawn.mean() < 0.7 and set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(model.score(grey, seed=5), model.score(drawn, seed=5))
    assert torch.equal(nvae.as_input((255 * drawn).to(torch.uint8), NoiseSource(1, "any", range(6))), drawn)
