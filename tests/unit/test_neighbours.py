"""Neighbours of samples: against brute force, prdc, models that copy, and distances whose limit is known."""

import contextlib
import io

import numpy as np
import prdc
import pytest
import torch

from vaebm.measures import neighbours as module
from vaebm.measures.frechet import SAMPLES_PER_FEATURE, Statistics, extrapolated_distance, frechet_distance
from vaebm.measures.neighbours import TrainingImages, find_neighbours
from vaebm.system.errors import UserError


def normal(seed, count, size=8, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, (count, size)).astype(np.float32)


def neighbours_of(samples, train, heldout, balls, k):
    return find_neighbours(samples, TrainingImages(train, balls, k), heldout)


def shares(found, k):
    """Precision, recall, density, coverage."""
    return np.mean(found.inside > 0), found.recalled.mean(), found.inside.mean() / k, found.covered.mean()


def by_brute_force(samples, train, heldout, real, k):
    """The same quantities from their definitions, point by point."""

    def nearest(point, among, which=0):
        return sorted(np.linalg.norm(np.float64(point) - np.float64(other)) for other in among)[which]

    balls = [nearest(one, train[:real], k) for one in train[:real]]  # the first is the point itself
    own = [nearest(one, samples, k) for one in samples]
    apart = np.array([[np.linalg.norm(np.float64(a) - np.float64(b)) for b in train] for a in samples])
    closest = apart.argmin(axis=1)
    authentic = [apart[j, i] > nearest(train[i], train, 1) for j, i in enumerate(closest)]
    size = min(len(train), len(heldout))
    parts = [train[first : first + size] for first in range(0, len(train) - size + 1, size)]
    return {
        "inside": (apart[:, :real] <= balls).sum(axis=1),
        "recalled": (apart[:, :real] <= np.array(own)[:, None]).any(axis=0),
        "covered": (apart[:, :real] <= balls).any(axis=0),
        "authentic": np.array(authentic),
        "train": np.array([np.mean([nearest(one, part) for part in parts]) for one in samples]),
        "heldout": np.array([nearest(one, heldout[:size]) for one in samples]),
    }


@pytest.mark.parametrize(("real", "k"), [(50, 3), (20, 1)])
def test_neighbours_are_those_of_their_definitions_whatever_is_held_at_once(real, k, monkeypatch):
    samples, train, heldout = normal(0, 40, 3, 0.5), normal(1, 50, 3), normal(2, 15, 3)
    expected = by_brute_force(samples, train, heldout, real, k)
    for held in (10**7, 7 * 50):
        monkeypatch.setattr(module, "DISTANCES", held)
        found = neighbours_of(samples, train, heldout, real, k)
        for name, values in expected.items():
            assert getattr(found, name) == pytest.approx(values, rel=1e-9), name
    assert all(0.1 < share < 0.95 for share in shares(found, k)) and 0.1 < found.authentic.mean() < 0.9
    with pytest.raises(UserError, match="neighbours: expected less than 20, the images there are, found 20"):
        neighbours_of(samples, train, heldout, 20, 20)
    with pytest.raises(UserError, match="neighbours: expected less than 3, the images there are, found 3"):
        neighbours_of(samples[:3], train, heldout, 20, 3)


def test_precision_recall_density_and_coverage_are_those_of_prdc():
    samples, real = normal(0, 300, shift=0.2), normal(1, 250)
    for k in (3, 5):
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = prdc.compute_prdc(real.astype(np.float64), samples.astype(np.float64), k)
        ours = shares(neighbours_of(samples, real, real, len(real), k), k)
        expected = [theirs[name] for name in ("precision", "recall", "density", "coverage")]
        assert ours == pytest.approx(expected, rel=1e-12)


def test_neighbours_do_not_change_with_order_scale_or_rotation():
    samples, train, heldout = normal(0, 60), normal(1, 80), normal(2, 30)
    base = neighbours_of(samples, train, heldout, 80, 3)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))[0]
    moved = neighbours_of(*((7 * part.astype(np.float64) @ turn + 2) for part in (samples, train, heldout)), 80, 3)
    turned = neighbours_of(samples[::-1].copy(), train, heldout, 80, 3)
    assert shares(base, 3) == shares(moved, 3) == shares(turned, 3)
    assert np.array_equal(base.authentic, moved.authentic) and np.array_equal(base.authentic, turned.authentic[::-1])
    assert moved.train / 7 == pytest.approx(base.train, rel=1e-5)


def test_collapse_costs_recall_and_coverage_and_scatter_costs_precision_and_density():
    """Real images around eight centres; samples around one of them, or everywhere."""
    random = np.random.default_rng(0)
    centres = 10 * np.array([[np.cos(angle), np.sin(angle)] for angle in np.arange(8) * np.pi / 4])
    real = centres[np.arange(400) % 8] + 0.5 * random.normal(size=(400, 2))
    one = centres[0] + 0.5 * random.normal(size=(400, 2))
    precision, recall, density, coverage = shares(neighbours_of(one, real, real, 400, 3), 3)
    assert precision > 0.9 and recall < 0.2 and density > 0.8 and coverage < 0.2
    anywhere = random.uniform(-13, 13, size=(400, 2))
    precision, recall, density, _ = shares(neighbours_of(anywhere, real, real, 400, 3), 3)
    assert precision < 0.4 and recall > 0.9 and density < 0.3


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
def test_copies_of_training_images_are_bounded_and_recovered(share):
    """A model with this share of copies, which are not quite exact, and otherwise fresh draws from the data's law.

    Copies are never authentic. A copy is in one of N/M parts, so the ratio falls by share · M/N. A fresh draw is not
    authentic if it and its nearest image are each other's nearest: that is the share of such pairs among N + 1 draws.
    """
    train, heldout, samples = normal(0, 2000), normal(1, 500), normal(2, 1000)
    copies = np.arange(1000) < share * 1000
    samples[copies] = train[1::2][: copies.sum()] + 1e-3 * normal(3, copies.sum())
    found = neighbours_of(samples, train, heldout, 300, 3)
    assert not found.authentic[copies].any() and share <= 1 - found.authentic.mean()
    nearest = torch.cdist(draws := torch.from_numpy(normal(4, 2001)), draws).fill_diagonal_(torch.inf).argmin(dim=1)
    apart = float((nearest[nearest] != torch.arange(2001)).double().mean())
    # both shares have a standard deviation of 0.015
    assert found.authentic.mean() == pytest.approx((1 - share) * apart, abs=0.05)
    recovered = (1 - found.train.sum() / found.heldout.sum()) * 2000 / 500
    assert recovered == pytest.approx(share, abs=0.06)


def test_extrapolated_distance_is_that_of_infinitely_many_samples():
    """N(0, I) and N(1/4, 1.44 I) in 32 dimensions have the distance 32 (1/16 + 0.04), which samples overestimate."""
    exact, reference = 32 * (1 / 16 + 0.04), Statistics(np.full(32, 0.25), 1.44 * np.eye(32))
    samples = [normal(seed, 1000, 32) for seed in range(8)]
    plain = np.mean([frechet_distance(Statistics.of(one), reference) for one in samples])
    found = np.mean([extrapolated_distance(one, reference, np.random.default_rng(0)) for one in samples])
    # the standard deviation of one estimate is 0.1
    assert plain > exact + 0.15 and found == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize("spectrum", [np.ones(32), 1 / np.arange(1, 33) ** 2], ids=["flat", "steep"])
def test_extrapolation_leaves_a_twentieth_of_the_bias_at_twenty_samples_per_feature(spectrum):
    """Samples from the reference's own law, so that all of a distance is bias. Isotropic laws keep 7/8 · D/N of it to
    leading order: 4.4 % at N = 20 D. At N = 5 D higher orders double that.
    """
    reference = Statistics(np.zeros(32), np.diag(spectrum))

    def remaining(per_feature):
        """Share of the bias that the extrapolation leaves, and its standard error."""
        samples = [normal(seed, per_feature * 32, 32) * np.sqrt(spectrum) for seed in range(100)]
        plain = np.mean([frechet_distance(Statistics.of(one), reference) for one in samples])
        found = [extrapolated_distance(one, reference, np.random.default_rng(0)) / plain for one in samples]
        return np.mean(found), np.std(found) / 10

    left, error = remaining(SAMPLES_PER_FEATURE)
    assert abs(left) < 7 / 8 / SAMPLES_PER_FEATURE + 3 * error and error < 0.05
    if spectrum[-1] == 1:
        assert remaining(5)[0] < -0.25
