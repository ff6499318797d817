"""What digits are told from, and how well."""

import numpy as np
import pytest
import torch

from vaebm.config import UserError
from vaebm.data.digits import prepare_digits, to_counts, to_uint8
from vaebm.evaluation import ood
from vaebm.evaluation.figures import ood_figures, scores
from vaebm.evaluation.likelihood import Likelihood


@pytest.fixture(scope="module")
def digits():
    images, _, splits, _ = prepare_digits()
    first, last = splits["heldout"]
    return images[first:last]


@pytest.mark.parametrize("name", sorted(ood.SETS))
def test_every_set_has_the_digits_count_form_and_levels(digits, name):
    pictures = ood.make(name, digits)
    assert pictures.shape == digits.shape and pictures.dtype == np.uint8
    assert set(np.unique(pictures)) <= set(to_uint8(np.arange(17))), "the same 17 levels, or the levels would tell them apart"
    assert np.array_equal(pictures, ood.make(name, digits)), "a function of the digits alone"


def test_interpolations_are_means_of_two_different_digits(digits):
    mixed, counts = to_counts(ood.make("interpolation", digits)), to_counts(digits)
    pairs = set()
    for index, picture in enumerate(mixed):
        partner = (index + len(digits) // 3) % len(digits)
        assert np.abs(2 * picture - counts[index] - counts[partner]).max() <= 1, "nearest level"
        pairs.add(frozenset((index, partner)))
    assert len(pairs) == len(digits) and all(len(pair) == 2 for pair in pairs)
    # halves go either way alike: the mean brightness stays, and so does the share of even levels among the greys
    exact = (counts + np.roll(counts, -(len(digits) // 3), axis=0)) / 2
    odd = exact % 1 == 0.5
    error = 4 * 0.5 / np.sqrt(odd.sum())  # four standard errors of a fair coin
    assert abs((mixed - exact)[odd].mean()) < error
    assert abs((mixed[odd] % 2 == 0).mean() - 0.5) < error


def test_turned_digits_are_turned_by_180_degrees(digits):
    pictures = ood.make("turned", digits)
    assert np.array_equal(np.rot90(pictures, 2, axes=(1, 2)), digits)
    assert not np.array_equal(pictures, digits)


def test_photographs_are_different_patches_brought_to_size_like_the_digits(digits):
    """Every patch is found again: 4×4 block means of a 32×32 crop of one of the two photographs."""
    pictures = ood.make("photographs", digits)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    from sklearn.datasets import load_sample_images

    grey = [np.asarray(photo, dtype=np.float64) @ (0.299, 0.587, 0.114) for photo in load_sample_images().images]
    for picture in pictures[[0, 1, 200]]:
        distances = []
        for photo in grey:
            sums = np.pad(photo.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            means = (sums[4:, 4:] - sums[4:, :-4] - sums[:-4, 4:] + sums[:-4, :-4]) / 16 / 255 * 16
            rows, columns = photo.shape[0] - 31, photo.shape[1] - 31
            blocks = np.stack([means[4 * r : 4 * r + rows, 4 * c : 4 * c + columns] for r in range(8) for c in range(8)])
            distances.append(np.abs(blocks - to_counts(picture[..., 0]).reshape(64, 1, 1)).max(axis=0).min())
        assert min(distances) <= 0.5 + 16 / 255, "nearest level, and at most one grey level lost by integer grey"


def test_other_images_are_refused():
    with pytest.raises(UserError, match="8×8×1, found images of 10×32×32×3"):
        ood.make("turned", np.zeros((10, 32, 32, 3), np.uint8))


def test_auroc_counts_pairs():
    generator = np.random.default_rng(0)
    inside, outside = generator.integers(0, 9, 40).astype(float), generator.integers(-3, 7, 30).astype(float)
    expected = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in inside for b in outside])
    assert ood.auroc(inside, outside) == pytest.approx(expected, rel=1e-12)
    assert ood.auroc(inside + 100, outside) == 1 and ood.auroc(inside - 100, outside) == 0


def test_scores_are_higher_for_what_looks_in_distribution():
    """Low energy and high likelihood both raise the score; with the NVAE alone there is no more than the likelihood."""
    bright, dark = torch.full((6, 1, 8, 8), 255, dtype=torch.uint8), torch.zeros(6, 1, 8, 8, dtype=torch.uint8)

    def energy(x):
        assert x.dtype == torch.uint8
        return -10 * (x / 255).mean(dim=(1, 2, 3))  # bright images are data here

    log_p = torch.arange(6, dtype=torch.float64)
    likelihood = Likelihood(elbo=log_p - 100, importance=log_p)
    inside, outside = scores(likelihood, bright, energy), scores(likelihood, dark, energy)
    assert inside[""] == pytest.approx(log_p.numpy() + 10)
    assert inside["energy"] == pytest.approx(10.0) and np.array_equal(inside["likelihood"], log_p)
    found = ood_figures(inside, {"dark": outside}, 20, 0)
    assert {name: figure["value"] for name, figure in found.items()} == {"AUROC-dark": 1, "AUROC-dark-energy": 1, "AUROC-dark-likelihood": 0.5}
    alone = scores(likelihood, bright, None)
    assert list(alone) == [""] and np.array_equal(alone[""], log_p)
    assert list(ood_figures(alone, {"dark": alone}, 20, 0)) == ["AUROC-dark"]


def test_an_energy_that_is_not_finite_is_named():
    likelihood = Likelihood(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(UserError, match="finite energies, found 2 others"):
        scores(likelihood, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), lambda x: torch.full((len(x),), torch.nan))
