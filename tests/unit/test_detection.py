"""How well scores tell held-out images from others, against computations by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, average_precision_score, roc_auc_score, roc_curve

from vaebm.evaluation import detection, stage
from vaebm.evaluation.detection import (
    measure_ood,
    replicates,
    roc_points,
    scores,
    separations,
    with_complexity,
    with_typicality,
)
from vaebm.measures import bootstrap
from vaebm.model import Estimates
from vaebm.records.metrics import MEANINGS
from vaebm.system.errors import UserError


def by_hand(inside, outside):
    """The measures from their definitions, one pair and one threshold at a time."""
    pairs = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in inside for b in outside])
    passing = None
    for threshold in sorted({*inside, *outside}, reverse=True):
        hits, others = sum(a >= threshold for a in inside), sum(b >= threshold for b in outside)
        if passing is None and 100 * hits >= 95 * len(inside):
            passing = others / len(outside)
    out = average_precision([-b for b in outside], [-a for a in inside])
    return {"AUROC": pairs, "AUPR": average_precision(inside, outside), "AUPR-out": out, "FPR95": passing}


def average_precision(positives, negatives):
    """Higher values are more positive."""
    found, before = 0.0, 0.0
    for threshold in sorted({*positives, *negatives}, reverse=True):
        hits, others = sum(a >= threshold for a in positives), sum(b >= threshold for b in negatives)
        found += (hits / len(positives) - before) * hits / (hits + others)
        before = hits / len(positives)
    return found


@pytest.mark.parametrize(("levels", "sizes"), [(9, (40, 30)), (3, (20, 50)), (10**6, (60, 60)), (1, (5, 7))])
def test_measures_are_those_of_their_definitions(levels, sizes):
    """With many equal scores, with 95 % of the images exactly (20, 40, 60), and with nothing but equal ones."""
    generator = np.random.default_rng(levels)
    inside, outside = (
        generator.integers(low, low + levels, size).astype(float)
        for low, size in zip((levels // 4, 0), sizes, strict=True)
    )
    expected = by_hand(inside, outside)
    assert separations(inside, outside) == pytest.approx(expected, rel=1e-12)
    shift = 2 * levels
    assert separations(inside + shift, outside) == {"AUROC": 1, "AUPR": 1, "AUPR-out": 1, "FPR95": 0}
    below = separations(inside - shift, outside)
    assert below["AUROC"] == 0 and below["FPR95"] == 1


@pytest.mark.parametrize("levels", [7, 10**6])
def test_measures_are_those_of_scikit_learn(levels):
    """Its areas, average precisions and ROC curve, with equal scores and without."""
    random = np.random.default_rng(0)
    inside, outside = random.integers(1, levels, 80).astype(float), random.integers(0, levels - 1, 60).astype(float)
    labels, values = np.repeat([1, 0], [80, 60]), np.concatenate([inside, outside])
    found = separations(inside, outside)
    assert found["AUROC"] == pytest.approx(roc_auc_score(labels, values), rel=1e-12)
    assert found["AUPR"] == pytest.approx(average_precision_score(labels, values), rel=1e-12)
    assert found["AUPR-out"] == pytest.approx(average_precision_score(1 - labels, -values), rel=1e-12)
    others, hits = roc_points(inside, outside)
    assert auc(others, hits) == pytest.approx(found["AUROC"], rel=1e-12)
    every = roc_curve(labels, values, drop_intermediate=False)[:2]
    assert np.interp(every[0] + every[1], others + hits, others) == pytest.approx(every[0], abs=1e-12)


@pytest.mark.parametrize("levels", [6, 10**6])
def test_replicates_are_the_measures_of_the_resampled_images(levels):
    generator = np.random.default_rng(1)
    inside, outside = (
        generator.integers(levels // 3, 2 * levels, 40).astype(float),
        generator.integers(0, levels + levels // 2, 23).astype(float),
    )
    counts = [bootstrap.resamples(size, 25, generator) for size in (40, 23)]
    for name, found in replicates(inside, outside, *counts).items():
        expected = [by_hand(np.repeat(inside, a), np.repeat(outside, b))[name] for a, b in zip(*counts, strict=True)]
        assert found == pytest.approx(expected, rel=1e-12), name


def test_scores_are_higher_for_what_looks_in_distribution():
    """Low energy and high likelihood both raise the score; with the NVAE alone there is no more than the likelihood."""
    log_p = torch.arange(6, dtype=torch.float64)
    bright, dark = (
        torch.full((6,), -10.0, dtype=torch.float64),
        torch.zeros(6, dtype=torch.float64),
    )  # bright images are data here
    inside, outside = (scores(Estimates(elbo=-log_p, importance=log_p, energy=energy)) for energy in (bright, dark))
    values = log_p.numpy()
    assert inside.keys() == outside.keys() == {"", "elbo", "energy", "likelihood", "likelihood-elbo"}
    assert inside[""] == pytest.approx(values + 10) and inside["elbo"] == pytest.approx(10 - values)
    assert (
        inside["energy"] == pytest.approx(10.0)
        and np.array_equal(inside["likelihood"], values)
        and np.array_equal(inside["likelihood-elbo"], -values)
    )
    found = measure_ood(inside, {"dark": outside}, 20, 0)
    areas = {name: figure.value for name, figure in found.items() if name.startswith("AUROC")}
    assert areas == {
        "AUROC-dark": 1,
        "AUROC-dark-elbo": 1,
        "AUROC-dark-energy": 1,
        "AUROC-dark-likelihood": 0.5,
        "AUROC-dark-likelihood-elbo": 0.5,
    }
    alone = scores(Estimates(-log_p, log_p, None))
    assert list(alone) == ["", "elbo"] and np.array_equal(alone[""], values)


def test_typicality_is_the_distance_from_the_mean_of_training_images():
    """Scores above all training images are as atypical as scores below; without a full score there is none."""
    training = {"": np.array([1.0, 3.0])}
    found = with_typicality({"": np.array([2.0, 5.0, 0.0]), "energy": np.zeros(3)}, training)
    assert found["typicality"].tolist() == [0, -3, -2] and list(found) == ["", "energy", "typicality"]
    assert with_typicality({"energy": np.zeros(3)}, {"energy": np.zeros(2)}).keys() == {"energy"}


def test_complexity_is_the_length_of_the_png():
    """Constant images are short, noise is long, whatever the channels; without a full score there is none."""
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8))
    images = torch.cat([torch.full_like(noise, 9), noise])
    for channels in (1, 2, 3):
        found = with_complexity({"": np.arange(6.0)}, images[:, :channels])["complexity"] - np.arange(6)
        bits = found / np.log(2)
        assert (
            (bits[:3] < 8 * 100).all()
            and (bits[3:] > channels * 16 * 16 * 8).all()
            and bits == pytest.approx(bits.round())
        )
    assert with_complexity({"energy": np.zeros(6)}, images).keys() == {"energy"}


def test_the_table_has_some_of_the_figures_and_the_record_all():
    random = np.random.default_rng(2)
    kinds = ("", "elbo", "energy", "likelihood", "likelihood-elbo", "typicality")
    inside, outside = ({name: random.normal(mean, size=30) for name in kinds} for mean in (1.5, 0))
    figures = measure_ood(inside, {"svhn": outside, "celeba": outside}, 50, 0)
    assert len(figures) == 2 * 6 * 4
    for figure in figures.values():
        low, high = figure.interval
        assert figure.samples == 30 and 0 <= low < figure.value < high <= 1
    shown = detection.in_the_table(figures)
    wanted = ["AUROC-{}", "AUROC-{}-energy", "AUROC-{}-likelihood", "AUPR-{}", "AUPR-out-{}", "FPR95-{}"]
    assert set(shown) == {name.format(one) for name in wanted for one in ("svhn", "celeba")}
    assert figures == measure_ood(inside, {"svhn": outside, "celeba": outside}, 50, 0), "a function of the seed"


def test_an_estimate_that_is_not_finite_is_named():
    found = Estimates(torch.zeros(2), torch.zeros(2), torch.full((2,), torch.nan))
    model, settings = SimpleNamespace(estimate=lambda *_: found), SimpleNamespace(elbo_samples=1)
    inputs = SimpleNamespace(model=model, trained={}, seed=0, settings=settings, folder="run")
    with pytest.raises(UserError, match="run: energy: expected finite estimates, found 2 of 2 images with nan"):
        stage.estimates(inputs, torch.zeros(2))


def test_a_model_without_a_likelihood_is_scored_by_its_energy_alone():
    """Nothing else is made up, and what is lacking is named."""
    found = with_typicality(scores(Estimates(None, None, torch.arange(3.0))), {})
    assert list(found) == ["energy"] and found["energy"].tolist() == [0, -1, -2]
    shown = detection.in_the_table(measure_ood(found, {"turned": found}, 50, 0))
    (name, area), *others = shown.items()
    assert (
        not others and name == "AUROC-turned-energy" and area.value == 0.5 and area.interval[0] < 0.5 < area.interval[1]
    )
    assert scores(Estimates(None, None, None)) == {}
    names = ["ELBO", "ELBO-train", "log-likelihood", *(f"{one}-turned" for one in MEANINGS)]
    assert stage.unavailable_metrics(["turned"], "why") == dict.fromkeys(names, "why")
    assert stage.unavailable_metrics(["turned"], "") == {}
