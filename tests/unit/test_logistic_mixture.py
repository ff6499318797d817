"""The discretised logistic mixture: masses that sum to one, its formula point by point, its samples."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pixels import DOUBLE, drawn
from scipy.stats import chisquare
from torch import Tensor

from vaebm.nvae.pixel_distributions import (
    PixelLogisticMixture,
)

SOFTPLUS = 1e-8
"""torch's softplus is the identity above 20, e⁻²⁰ = 2e-9 too small there; a pixel has three."""


def grid(bits: int) -> Tensor:
    """The grey levels in [0, 1]."""
    return torch.arange(2**bits, dtype=DOUBLE) / (2**bits - 1)


def mixture(seed: int, components: int, *, side: int = 1, log_scale: float = -1.0) -> Tensor:
    """Random logits (1, 10K, side, side): means over the range, log scales near `log_scale`, coefficients up to ±1."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 10 * components, side, side, generator=generator, dtype=DOUBLE)
    logits[:, components:].view(3, 3, components, side, side)[:, 1] += log_scale
    return logits


def parts(logits: Tensor) -> Tensor:
    """A view of the logits after the components' own: (colour, kind, K, H, W), kinds mean, log scale, coefficient; one
    image.
    """
    components = logits.shape[1] // 10
    return logits[0, components:].view(3, 3, components, *logits.shape[2:])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    components=st.integers(1, 3),
    bits=st.integers(1, 3),
    log_scale=st.sampled_from([-8.0, -5.0, -3.0, -1.0, 2.0]),
)
def test_masses_of_all_colours_sum_to_one(seed: int, components: int, bits: int, log_scale: float) -> None:
    """Every colour once, each given those before.

    Masses below 1e-5 are replaced by smaller densities: at most 1e-5 a level is lost.
    """
    colours = torch.tensor(list(itertools.product(grid(bits).tolist(), repeat=3)), dtype=DOUBLE)[:, :, None, None]
    pixels = PixelLogisticMixture(mixture(seed, components, log_scale=log_scale).expand(len(colours), -1, -1, -1), bits)
    total = pixels.log_prob(colours).exp().sum().item()
    assert 1.0 - 3 * 2**bits * 1e-5 < total < 1.0 + SOFTPLUS


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("colour", range(3))
def test_masses_of_the_levels_of_a_colour_sum_to_one(colour: int, bits: int) -> None:
    """The other colours stand at their last level and are certain to: their means are far above it, so log p is the
    colour's own.

    As published, whatever is above 0.99 gets the whole upper tail. At 8 bits these are two levels, 254 and 255, so that
    the masses sum to one without the last one; at fewer bits it is the last level alone.
    """
    logits = mixture(1, 3)
    parts(logits)[:, :2].clamp_(
        -1.2, 0.5
    )  # means and log scales for which no component's mass is below 1e-5, and replaced by its density
    for other in {0, 1, 2} - {colour}:
        parts(logits)[other, 0] = 1e4
    x = torch.ones(2**bits, 3, 1, 1, dtype=DOUBLE)
    x[:, colour, 0, 0] = grid(bits)
    mass = PixelLogisticMixture(logits.expand(len(x), -1, -1, -1), bits).log_prob(x).exp().flatten()
    assert mass[: 255 if bits == 8 else None].sum().item() == pytest.approx(1.0, abs=1e-12)


def by_hand(logits: Tensor, x: list[float], bits: int) -> float:
    """log p of one pixel, number by number."""
    components, levels = len(logits) // 10, 2**bits - 1
    red, green, blue = (2 * value - 1 for value in x)
    raw = logits[components:].reshape(3, 3, components).tolist()
    each = []
    for k in range(components):
        c = [math.tanh(raw[index][2][k]) for index in range(3)]
        means = [raw[0][0][k], raw[1][0][k] + c[0] * red, raw[2][0][k] + c[1] * red + c[2] * green]
        total = logits[k].item() - torch.logsumexp(logits[:components], 0).item()
        for y, mean, log_scale in zip((red, green, blue), means, (raw[index][1][k] for index in range(3)), strict=True):
            log_scale = max(log_scale, -7.0)
            plus, minus, middle = (math.exp(-log_scale) * (y - mean + offset / levels) for offset in (1, -1, 0))
            mass = logistic(plus) - logistic(minus)
            if y < -0.999:
                total += plus - softplus(plus)
            elif y > 0.99:
                total -= softplus(minus)
            elif mass > 1e-5:
                total += math.log(mass)
            else:
                total += middle - log_scale - 2 * softplus(middle) - math.log(levels / 2)
        each.append(total)
    largest = max(each)
    return largest + math.log(sum(math.exp(total - largest) for total in each))


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    components=st.integers(1, 4),
    bits=st.integers(1, 8),
    log_scale=st.sampled_from([-12.0, -6.0, -3.0, 0.0]),
    levels=st.tuples(*[st.integers(0, 255) | st.sampled_from([0, 254, 255])] * 3),
)
def test_mixture_by_the_formula(
    seed: int, components: int, bits: int, log_scale: float, levels: tuple[int, int, int]
) -> None:
    logits = mixture(seed, components, log_scale=log_scale)
    x = [(level >> (8 - bits)) / (2**bits - 1) for level in levels]
    found = PixelLogisticMixture(logits, bits).log_prob(torch.tensor(x, dtype=DOUBLE).reshape(1, 3, 1, 1))
    assert found.item() == pytest.approx(by_hand(logits[0, :, 0, 0], x, bits), rel=1e-9, abs=SOFTPLUS)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
def test_mixture_stays_finite_for_extreme_parameters(size: float) -> None:
    """In single precision, at the edges and between them: a training step that went too far can go back."""
    torch.manual_seed(0)
    logits = (size * torch.randn(1, 30, 16, 16)).requires_grad_()
    for level in (0.0, 0.4, 254 / 255, 1.0):
        log_prob = PixelLogisticMixture(logits).log_prob(torch.full((1, 3, 16, 16), level))
        (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
        assert log_prob.isfinite().all() and gradient.isfinite().all()


def choosing(component: int, components: int, side: int = 1) -> Tensor:
    """Uniforms that choose a component among those of about equal weight."""
    choose = torch.full((1, components, side, side), 0.01, dtype=DOUBLE)
    choose[:, component] = 1 - 1e-9
    return choose


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_mixture_samples_are_quantiles_of_the_chosen_component(temperature: float) -> None:
    """Red, green given red, blue given both: y = μ + s / t · logit(v) + shifts; t < 1 widens, as published."""
    logits = 0.3 * mixture(3, 3, log_scale=-15.0)  # log scales around −4.5
    place = torch.tensor([0.3, 0.5, 0.9], dtype=DOUBLE).reshape(1, 3, 1, 1)
    for k in range(3):
        means, log_scales, raw = parts(logits)[:, :, k, 0, 0].T
        c = raw.tanh()
        y = means + log_scales.exp() / temperature * torch.logit(place.flatten())
        green = y[1] + c[0] * y[0]
        expected = torch.stack([y[0], green, y[2] + c[1] * y[0] + c[2] * green])
        assert expected.abs().max() < 1  # nothing is clamped
        found = PixelLogisticMixture(logits).sample([choosing(k, 3), place], temperature)
        torch.testing.assert_close(found.flatten(), 0.5 + 0.5 * expected)


def test_mixture_clamps_each_colour_before_it_shifts_the_next() -> None:
    logits = torch.zeros(1, 10, 1, 1, dtype=DOUBLE)
    means, coefficients = parts(logits)[:, 0, 0, 0, 0], parts(logits)[:, 2, 0, 0, 0]
    means.copy_(torch.tensor([3.0, -0.5, -2.5]))
    coefficients.copy_(
        torch.tensor([0.5, 1.0, -1.0]).atanh().clamp(-30, 30)
    )  # green: −0.5 + 0.5; blue: −2.5 + 1 − green
    half = torch.full((1, 3, 1, 1), 0.5, dtype=DOUBLE)
    pixels = PixelLogisticMixture(logits)
    expected = torch.tensor([1.0, 0.5, 0.0], dtype=DOUBLE)
    torch.testing.assert_close(pixels.sample([choosing(0, 1), half]).flatten(), expected)
    torch.testing.assert_close(pixels.mean.flatten(), expected)


def test_mixture_mean_averages_means_and_coefficients() -> None:
    logits = mixture(4, 3) * 0.3
    weights = logits[0, :3, 0, 0].exp() / logits[0, :3, 0, 0].exp().sum()
    raw = parts(logits)[..., 0, 0]
    red, green, blue = (raw[:, 0] * weights).sum(1).tolist()
    c = (raw[:, 2].tanh() * weights).sum(1).tolist()
    green += c[0] * red
    blue += c[1] * red + c[2] * green
    assert (2 * PixelLogisticMixture(logits).mean - 1).flatten().tolist() == pytest.approx(
        [red, green, blue], rel=1e-12
    )


def test_mixture_samples_have_the_probabilities_of_their_levels() -> None:
    """Without shifts (given the unrounded colours before, they differ a little) rounding a sample to its level is
    exact: 64 colours by χ².
    """
    logits, side = mixture(5, 2, log_scale=-0.5), 200
    parts(logits)[:, 2] = 0
    pixels = PixelLogisticMixture(logits.expand(-1, -1, side, side), bits=2)
    levels = (3 * drawn(pixels)).round().long()[0].flatten(1)
    found = torch.bincount(16 * levels[0] + 4 * levels[1] + levels[2], minlength=64)
    colours = torch.tensor(list(itertools.product(grid(2).tolist(), repeat=3)), dtype=DOUBLE)[:, :, None, None]
    expected = PixelLogisticMixture(logits.expand(64, -1, -1, -1), bits=2).log_prob(colours).exp().flatten() * side**2
    assert expected.min() > 5  # where χ² holds
    assert chisquare(found, expected * (side**2 / expected.sum())).pvalue > 1e-3  # one seed: passes or fails for ever


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_mixture_chooses_components_by_their_weights(temperature: float) -> None:
    """softmax(π / t), seen by components that lie far apart."""
    side = 200
    logits = torch.full((1, 30, 1, 1), -7.0, dtype=DOUBLE)
    logits[0, :3, 0, 0] = torch.tensor([0.3, -0.7, 1.0])
    parts(logits)[:, 0] = torch.tensor([-0.8, 0.0, 0.8], dtype=DOUBLE)[:, None, None]
    parts(logits)[:, 2] = 0
    image = drawn(PixelLogisticMixture(logits.expand(-1, -1, side, side)), temperature=temperature)
    component = (2.5 * (image - 0.1)).round().long()[0]
    assert (component[0] == component[1]).all() and (
        component[0] == component[2]
    ).all()  # one component for all colours
    weights = torch.softmax(logits[0, :3, 0, 0] / temperature, 0)
    error = (weights * (1 - weights) / side**2).sqrt()
    assert ((torch.bincount(component[0].flatten()) / side**2 - weights).abs() < 4 * error).all()
