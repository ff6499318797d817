"""Bootstrap intervals against known laws, and each metric's replicates against the metric itself."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from vaebm.measures import bootstrap, fidelity
from vaebm.measures.bootstrap import generator, interval, resamples
from vaebm.measures.frechet import Statistics, frechet_distance


def drawn(values, row):
    """The images of a resample, each as often as it comes."""
    return np.repeat(values, row, axis=0)


def test_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(0).exponential(size=400)
    replicates = resamples(400, 20_000, generator(0, "mean")) @ values / 400
    low, high = interval(values.mean(), replicates)
    half = 1.96 * values.std() / np.sqrt(400)
    # percentiles of 20,000 draws have a standard error of 2 % of the half-width; the mean is skewed: 6 %
    assert high - values.mean() == pytest.approx(half, rel=0.06) and values.mean() - low == pytest.approx(
        half, rel=0.06
    )


def test_interval_of_a_share_covers_it_as_often_as_it_says():
    """600 repetitions: the covered part has a standard error of 0.9 %, and counts are whole: within 3 of them."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        found = random.binomial(500, 0.3) / 500
        low, high = bootstrap.proportion(found, 500)
        covered += low <= 0.3 <= high
    assert covered / 600 == pytest.approx(0.95, abs=0.027)
    for seen in (0, 1, 33, 499, 500):
        expected = binomtest(seen, 500).proportion_ci(method="wilson")
        assert bootstrap.proportion(seen / 500, 500) == pytest.approx(list(expected), rel=1e-12, abs=1e-15)


def test_interval_holds_a_figure_that_resamples_are_biased_away_from_and_keeps_to_what_can_be():
    """All 40 modes seen once or twice: every resample sees fewer, and an unmoved interval would leave out the 40."""
    seen = (generator(0, "modes").multinomial(50, np.full(40, 1 / 40), size=200) > 0).sum(axis=1)
    assert seen.max() < 40
    low, high = interval(40, seen, 1, 40)
    assert low < 40 == high
    assert bootstrap.proportion(1.0, 50) == pytest.approx(
        [50 / (50 + norm.ppf(0.975) ** 2), 1.0]
    )  # Wilson: n / (n + z²)


def test_width_for_a_frechet_distance_is_the_spread_over_other_samples():
    """The same law drawn 200 times gives the spread that one sample's resamples should have."""
    random = np.random.default_rng(0)
    reference = Statistics.of(random.normal(size=(2000, 8)) + 1)
    spread = np.std([frechet_distance(Statistics.of(random.normal(size=(500, 8))), reference) for _ in range(200)])
    features = random.normal(size=(500, 8))
    replicates = bootstrap.frechet_replicates(features, resamples(500, 200, generator(0, "FD")), [reference])
    # two standard deviations from 200 values each: 5 % of error each, the sample's own on top: within 20 %
    assert replicates.std() == pytest.approx(spread, rel=0.2)
    assert replicates.mean() > frechet_distance(Statistics.of(features), reference), (
        "biased upwards, which the interval takes out"
    )


@pytest.mark.parametrize("together", [0, 100])
def test_frechet_replicates_are_distances_of_the_resampled_images(monkeypatch, together):
    """All resamples at once, and one by one."""
    monkeypatch.setattr(bootstrap, "COVARIANCE_BATCH", 7)
    monkeypatch.setattr(bootstrap, "TOGETHER", together)
    random = np.random.default_rng(0)
    features, references = (
        random.normal(size=(160, 5)),
        [Statistics.of(random.normal(size=(80, 5)) + shift) for shift in (0, 1)],
    )
    counts = resamples(160, 4, random)
    expected = [
        [frechet_distance(Statistics.of(drawn(features, row)), reference) for reference in references] for row in counts
    ]
    assert bootstrap.frechet_replicates(features, counts, references) == pytest.approx(np.array(expected), rel=1e-9)


@pytest.mark.parametrize("block", [7, 1000])
def test_kid_replicates_are_sums_over_pairs_of_different_images(monkeypatch, block):
    monkeypatch.setattr(bootstrap, "PAIRWISE_BATCH", block)
    random = np.random.default_rng(0)
    a, b, number = random.normal(size=(15, 6)) + 0.3, random.normal(size=(15, 6)), 15
    counts = np.concatenate([np.ones((1, number), dtype=np.int64), resamples(number, 3, random)])

    def kernel(x, y):
        return (np.dot(x, y) / 6 + 1) ** 3

    expected = []
    for row in counts:
        within = sum(row[i] * row[j] * kernel(a[i], a[j]) for i in range(number) for j in range(number) if i != j) / (
            number * (number - 1)
        )
        across = sum(row[i] * kernel(a[i], y) for i in range(number) for y in b) / (number * len(b))
        expected.append(within - 2 * across)
    found = bootstrap.kid_replicates(a, b, counts)
    # kernels are summed in single precision
    assert found == pytest.approx(expected, rel=1e-5)
    of_b = sum(kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / (len(b) * (len(b) - 1))
    assert found[0] + of_b == pytest.approx(fidelity.kid(a, b, 1, number, 0)[0], rel=1e-5), (
        "the constant is the real images' own part"
    )


def test_inception_replicates_are_scores_of_the_resampled_parts():
    logits = 3 * np.random.default_rng(0).normal(size=(33, 4))
    found = bootstrap.inception_replicates(logits, 3, 5, generator(0, "score"))
    random = generator(0, "score")
    parts = [(logits[11 * part : 11 * (part + 1)], resamples(11, 5, random)) for part in range(3)]
    for number, score in enumerate(found):
        redrawn = np.concatenate([drawn(values, counts[number]) for values, counts in parts])
        assert score == pytest.approx(fidelity.inception_score(redrawn, 3)[0], rel=1e-12)


def test_resamples_are_a_function_of_seed_and_purpose():
    first, again, other = (resamples(50, 3, generator(0, purpose)) for purpose in ("a", "a", "b"))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first, resamples(50, 3, generator(1, "a")))
    assert (first.sum(axis=1) == 50).all()
