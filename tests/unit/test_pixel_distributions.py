"""Distributions of the pixels: masses that sum to one, the formulas point by point, samples, borders, depths."""

import math

import pytest
import torch
from pixels import DOUBLE, drawn
from torch import Tensor
from torch.distributions import Bernoulli

from vaebm.config import NVAENetworkSettings
from vaebm.nvae.pixel_distributions import (
    PixelBernoulli,
    PixelLogisticMixture,
    PixelNormal,
    logit_channels,
    pixels_of,
    quantize,
)


# -------------------------------------------------------------------------------------------------- depth of the images
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", range(1, 9))
def test_quantised_levels_are_those_of_integer_arithmetic(bits: int, dtype: torch.dtype) -> None:
    """Of 256 levels the upper bits are kept: no level is lost to rounding, and what is quantised stays where it is."""
    levels = torch.arange(256)
    found = quantize(levels.to(dtype) / 255, bits)
    assert torch.equal((found * (2**bits - 1)).round().long(), levels >> (8 - bits))
    assert torch.equal(found, (levels >> (8 - bits)).to(dtype) / (2**bits - 1))
    assert torch.equal(quantize(found, bits), found)


# -------------------------------------------------------------------------------------------------------------- normal
def test_normal_is_a_density_of_the_rescaled_image() -> None:
    """∫ p(y) dy = 1 over y = 2x − 1, not over x."""
    logits = torch.tensor([0.2, -1.5], dtype=DOUBLE).reshape(1, 2, 1, 1)
    y = torch.linspace(-4, 4, 4001, dtype=DOUBLE)
    density = PixelNormal(logits).log_prob(((y + 1) / 2).reshape(-1, 1, 1, 1)).exp().flatten()
    assert torch.trapezoid(density, y).item() == pytest.approx(1.0, abs=1e-9)


def test_normal_mean_may_leave_the_range_and_samples_may_not() -> None:
    logits = torch.cat([torch.full((1, 1, 4, 4), 2.0), torch.zeros(1, 1, 4, 4)], dim=1)
    pixels = PixelNormal(logits)
    assert (pixels.mean > 1).all()
    eps = torch.linspace(-4, 4, 16).reshape(1, 1, 4, 4).requires_grad_()
    sample = pixels.sample(eps)
    assert sample.min() >= 0 and sample.max() <= 1
    (gradient,) = torch.autograd.grad(sample.sum(), eps)
    assert ((gradient == 0) == ((sample == 0) | (sample == 1))).all()  # saturated pixels, and they alone, have none


def test_normal_temperature_scales_the_noise() -> None:
    logits = torch.tensor([0.1, -2.0], dtype=DOUBLE).reshape(1, 2, 1, 1).expand(5, -1, -1, -1)
    eps = torch.linspace(-1, 1, 5, dtype=DOUBLE).reshape(5, 1, 1, 1)
    sigma = math.exp(5 * math.tanh(-0.4)) + 0.01
    torch.testing.assert_close(
        PixelNormal(logits).sample(eps, 0.7), 0.5 + 0.5 * (5 * math.tanh(0.02) + 0.7 * sigma * eps)
    )


def test_floors_of_log_sigma() -> None:
    """The chain's density floors log σ at −2; the trained density only where the settings say so."""
    logits = torch.cat([torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), -4.0)], dim=1)
    middle = torch.full((1, 1, 1, 1), 0.5)

    def sigma(log_density: Tensor) -> float:
        return math.exp(-log_density.item()) / math.sqrt(2 * math.pi)

    assert sigma(PixelNormal(logits).log_prob(middle)) == pytest.approx(math.exp(5 * math.tanh(-0.8)) + 0.01, rel=1e-5)
    assert sigma(PixelNormal(logits).chain_log_prob(middle)) == pytest.approx(math.exp(-2) + 0.01, rel=1e-5)
    assert PixelNormal(logits, -2.0).log_prob(middle) == PixelNormal(logits).chain_log_prob(middle)


# ----------------------------------------------------------------------------------------------------------- Bernoulli
def test_bernoulli_against_torch() -> None:
    torch.manual_seed(0)
    logits, x = 3 * torch.randn(4, 1, 6, 6, dtype=DOUBLE), torch.randint(0, 2, (4, 1, 6, 6)).double()
    pixels, reference = PixelBernoulli(logits), Bernoulli(logits=logits)
    torch.testing.assert_close(pixels.log_prob(x), reference.log_prob(x))
    torch.testing.assert_close(pixels.mean, reference.mean)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_bernoulli_samples_have_the_probability_of_their_mean(temperature: float) -> None:
    logits = torch.tensor([-2.0, -0.5, 0.0, 1.0], dtype=DOUBLE).reshape(1, 4, 1, 1).expand(-1, -1, 100, 100)
    image = drawn(PixelBernoulli(logits), temperature=temperature)
    assert set(image.unique().tolist()) == {0.0, 1.0}
    p = torch.sigmoid(logits[0, :, 0, 0] / temperature)
    assert ((image.mean((0, 2, 3)) - p).abs() < 4 * (p * (1 - p) / 1e4).sqrt()).all()


# ------------------------------------------------------------------------------------------------------ what all share
def network(**changes: object) -> NVAENetworkSettings:
    """Settings, of which the pixels use a few."""
    base = {
        "channels_encoder": 4,
        "channels_decoder": 4,
        "groups": [1],
        "latents": 1,
        "preprocess_blocks": 1,
        "preprocess_cells": 1,
        "postprocess_cells": 1,
    }
    return NVAENetworkSettings.model_validate(base | {"cells_encoder": 1, "cells_decoder": 1} | changes)


@pytest.mark.parametrize(
    ("changes", "expected", "channels"),
    [
        ({"decoder": "normal"}, PixelNormal, 6),
        ({"decoder": "logistic_mixture", "mixtures": 4, "bits": 5}, PixelLogisticMixture, 40),
        ({"decoder": "bernoulli"}, PixelBernoulli, 3),
    ],
)
def test_likelihood_is_the_sum_over_the_image_without_its_border(
    changes: dict[str, object], expected: type, channels: int
) -> None:
    """What stands in the border changes nothing; what stands in the middle is all that counts."""
    torch.manual_seed(0)
    cropped = network(crop=2, **changes)
    assert logit_channels(cropped, 3) == channels
    logits, x = torch.randn(2, channels, 8, 7, dtype=DOUBLE), torch.randint(0, 2, (2, 3, 8, 7)).double()
    pixels, whole = pixels_of(cropped, logits), pixels_of(network(**changes), logits)
    assert type(pixels) is expected
    torch.testing.assert_close(whole.log_likelihood(x), whole.log_prob(x).flatten(1).sum(1))
    torch.testing.assert_close(
        pixels.log_likelihood(x),
        pixels_of(network(**changes), logits[..., 2:-2, 2:-2]).log_likelihood(x[..., 2:-2, 2:-2]),
    )
    other = 1 - x
    other[..., 2:-2, 2:-2] = x[..., 2:-2, 2:-2]
    assert torch.equal(pixels.log_likelihood(other), pixels.log_likelihood(x))
    assert (whole.log_likelihood(other) != whole.log_likelihood(x)).all()
    assert pixels.log_prob(x).shape[-2:] == pixels.mean.shape[-2:] == (8, 7)  # pictures keep their border


@pytest.mark.parametrize(
    "changes", [{"decoder": "normal"}, {"decoder": "logistic_mixture", "mixtures": 4}, {"decoder": "bernoulli"}]
)
def test_samples_are_images_of_their_noise(changes: dict[str, object]) -> None:
    """In [0, 1], of the logits' type, the same for the same noise, each image by its own index."""
    torch.manual_seed(0)
    settings = network(**changes)
    pixels = pixels_of(settings, torch.randn(3, logit_channels(settings, 3), 4, 4, dtype=DOUBLE))
    first, again, other = (drawn(pixels, purpose) for purpose in ("a", "a", "b"))
    assert first.shape == (3, 3, 4, 4) and first.dtype == DOUBLE and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)
