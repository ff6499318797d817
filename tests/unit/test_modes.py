"""Modes of stacks: the triples of labels, their law, and what a perfect sampler scores."""

import math

import numpy as np
import pytest

from vaebm.measures import modes
from vaebm.records.results import Measurement
from vaebm.system.errors import UserError

UNIFORM = np.full(1000, 1 / 1000)


def test_the_first_channel_is_the_first_digit():
    first, second = [(4, 0, 7), (0, 9, 1)], [(4, 0, 7), (0, 4, 1)]
    assert modes.modes_of(np.stack([first, second], axis=2), 10).tolist() == [[407, 407], [91, 41]]


def test_law_is_the_product_of_the_channels_frequencies():
    labels = np.array([407, 417, 907, 101])
    law = modes.law_of(labels, 3, 10)
    assert law.shape == (1000,) and law.sum() == pytest.approx(1)
    assert (
        law[407] == pytest.approx(2 / 4 * 3 / 4 * 3 / 4)
        and law[917] == pytest.approx(1 / 4 * 1 / 4 * 3 / 4)
        and law[191] == 0
    )


def test_divergence_by_hand_with_modes_that_no_sample_hits():
    law = np.array([0.5, 0.25, 0.25, 0.0])
    assert modes.divergence(np.array([3, 1, 0, 0]), law) == pytest.approx(
        0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.25)
    )
    assert modes.divergence(np.array([50, 25, 25, 0]), law) == pytest.approx(0, abs=1e-15)
    assert modes.divergence(np.array([[8, 0, 0, 0], [0, 0, 8, 0]]), law) == pytest.approx([math.log(2), math.log(4)])


def test_a_mode_that_the_data_cannot_have_is_refused():
    law = np.array([0.5, 0.5, 0.0])
    assert modes.histogram(np.array([0, 0, 1]), law).tolist() == [2, 1, 0]
    with pytest.raises(UserError, match="samples taken for mode 2, which no training image can have"):
        modes.histogram(np.array([0, 2]), law)


@pytest.mark.parametrize("images", [300, 5000])
def test_floors_are_the_means_of_a_perfect_sampler(images):
    """Against 300 simulated samplers; the tolerance is four standard errors of their mean."""
    law = modes.law_of(np.random.default_rng(0).integers(0, 8**3, 400), 3, 8)
    counts = np.random.default_rng(1).multinomial(images, law, size=300)
    for expected, found in (
        (modes.expected_modes(law, images), (counts > 0).sum(axis=1)),
        (modes.expected_divergence(law, images), modes.divergence(counts, law)),
    ):
        assert expected == pytest.approx(found.mean(), abs=4 * found.std() / math.sqrt(300))


def test_floors_in_closed_form():
    """A fair coin tossed twice shows both sides half of the time; a divergence of ln 2 the other half."""
    coin = np.array([0.5, 0.5])
    assert modes.expected_modes(coin, 2) == pytest.approx(1.5)
    assert modes.expected_divergence(coin, 2) == pytest.approx(0.5 * math.log(2))
    assert modes.expected_modes(UNIFORM, 10_000) == pytest.approx(1000 - 1000 * 0.999**10_000)
    # (modes − 1) / 2n is the leading term; the next is of the order (Σ 1/p) / 12 n² = 0.0008
    assert modes.expected_divergence(UNIFORM, 10_000) == pytest.approx(999 / 20_000, abs=1.5e-3)


def test_figures_of_a_perfect_and_of_a_collapsed_sampler():
    perfect = modes.measure_modes(np.random.default_rng(0).integers(0, 1000, (10_000, 1)), UNIFORM, 100, seed=0)
    assert perfect["modes"].value >= 999
    low, high = perfect["KL"].interval
    assert low < perfect["KL-floor"].value < high
    collapsed = modes.measure_modes(np.repeat([0, 1, 2], [4000, 3000, 3000])[:, None], UNIFORM, 100, seed=0)
    assert collapsed["modes"] == Measurement(value=3.0, samples=10_000, of=1000)
    entropy = -sum(share * math.log(share) for share in (0.4, 0.3, 0.3))
    assert collapsed["KL"].value == pytest.approx(math.log(1000) - entropy)
    assert collapsed["KL-floor"] == perfect["KL-floor"] and collapsed["KL-floor"].interval is None


def test_figures_are_means_over_the_networks():
    """Each network alone by `divergence`; their mean has the spread of both, and one interval."""
    random = np.random.default_rng(0)
    law, first = np.full(5, 1 / 5), random.integers(0, 5, 400)
    second = np.where(random.random(400) < 0.3, 0, first)
    found = modes.measure_modes(np.stack([first, second], axis=1), law, 200, seed=0)
    alone = [modes.measure_modes(one[:, None], law, 200, seed=0) for one in (first, second)]
    each = [float(modes.divergence(modes.histogram(one, law), law)) for one in (first, second)]
    assert [one["KL"].value for one in alone] == pytest.approx(each) and alone[0]["KL"].spread_over_networks is None
    assert found["KL"].value == pytest.approx(np.mean(each))
    assert found["KL"].spread_over_networks == pytest.approx(np.std(each, ddof=1))
    assert found["modes"] == Measurement(value=5.0, samples=400, of=5, spread_over_networks=0.0)
    with pytest.raises(UserError, match="samples taken for mode 4"):
        modes.measure_modes(np.array([[0, 0], [0, 4]]), np.array([0.25, 0.25, 0.25, 0.25, 0.0]), 10, seed=0)


def test_the_interval_resamples_images_and_not_networks():
    """Networks that agree on all images add no certainty: ten of them have the interval of one."""
    found = np.random.default_rng(0).integers(0, 5, (400, 1))
    one, ten = (modes.measure_modes(np.repeat(found, number, axis=1), np.full(5, 0.2), 200, 0) for number in (1, 10))
    assert ten["KL"].interval == pytest.approx(one["KL"].interval)
    # for counts of a uniform law, 2 n KL is nearly chi-square; the interval is about as wide as ±2 of its deviations
    low, high = one["KL"].interval
    assert 0 < high - low < 8 * math.sqrt(2 * 4) / 800
