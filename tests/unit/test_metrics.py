"""The registry of metrics: every name that is written is registered, and the reference page is in step with it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from vaebm.config import EvaluationSettings, NVAENetworkSettings
from vaebm.evaluation.detection import measure_ood, with_typicality
from vaebm.evaluation.extractors import ExtractorOutput
from vaebm.evaluation.measurements import measure_fidelity, measure_likelihood, training_balls
from vaebm.evaluation.reference import Reference
from vaebm.evaluation.stage import unavailable_metrics
from vaebm.measures.frechet import Statistics
from vaebm.measures.modes import measure_modes
from vaebm.model import Estimates
from vaebm.nvae.model import NVAE
from vaebm.records.metrics import (
    FD_STRETCHED,
    MEANINGS,
    SECONDS_PER_50,
    STANDARD_METRICS,
    metric,
    other_extractors,
    with_direction,
)
from vaebm.report.paper import Table, read_paper
from vaebm.system.errors import UserError

ROOT = Path(__file__).parents[2]
EXTRACTORS = ("inception", "classifier", "resnet56", "DINOv2")
PAGE = ROOT / "docs" / "reference" / "metrics.md"
SETTINGS = {"bootstrap": 2, "precision_recall": {"images": 8}, "steps": {"images": 8, "counts": [0]}, "ood": []}


def written() -> set[str]:
    """The names that the functions of the stage `evaluation` write, with every extractor and decoder."""
    random = np.random.default_rng(0)
    features, estimates = random.normal(size=(60, 3)), Estimates(*3 * [torch.zeros(2)])
    reference = Reference(features, Statistics.of(features), Statistics.of(features), 0.0, features[:5])
    output = ExtractorOutput(features, random.normal(size=(60, 1, 4)))
    found = {SECONDS_PER_50.pattern, *(FD_STRETCHED.named(extractor) for extractor in EXTRACTORS)}
    found |= {"log-likelihood-energy", "log-likelihood-annealed"}
    found |= set(measure_modes(np.array([[0], [1]]), np.array([0.5, 0.5]), 2, seed=0))
    found |= set(unavailable_metrics(["svhn"], "why"))
    for extractor in EXTRACTORS:
        kid = {"kid_subsets": 1, "kid_subset_size": 8, "inception_splits": 2}
        settings = EvaluationSettings.model_validate(SETTINGS | kid | {"extractor": extractor})
        judged = output if extractor != "DINOv2" else output._replace(logits=np.empty((60, 0, 0)))
        found |= set(measure_fidelity(judged, reference, training_balls(reference, settings, 0), settings, seed=0))
    sizes = {"channels_encoder": 4, "channels_decoder": 4, "groups": [1], "latents": 1, "preprocess_blocks": 1}
    cells = {"preprocess_cells": 1, "postprocess_cells": 1, "cells_encoder": 1, "cells_decoder": 1}
    network = NVAENetworkSettings.model_validate(sizes | cells | {"decoder": "bernoulli"})
    found |= set(measure_likelihood(NVAE(network, (1, 8, 8)), estimates, estimates, draws=1))
    kinds = ("", "elbo", "energy", "likelihood", "likelihood-elbo", "complexity")
    scores = with_typicality({kind: random.normal(size=4) for kind in kinds}, {"": np.zeros(2)})
    return found | set(measure_ood(scores, {"svhn": scores}, 2, 0))


def test_registry_has_the_metrics_that_an_evaluation_writes_and_no_others() -> None:
    names = written()
    assert {metric(name) for name in names} == set(STANDARD_METRICS)
    page = PAGE.read_text()
    for name in names:
        shown = re.sub(rf"-({'|'.join(other_extractors())})\b", "-EXTRACTOR", name)
        measure, found, score = shown.partition("svhn")
        assert f"`{measure}{'SET' if found else ''}`" in page, name
        assert not score or f"`{score}`" in page, name


def test_every_entry_is_complete() -> None:
    """One entry for each name; a floor is a metric of its own, and explained."""
    assert (
        len({one.pattern for one in STANDARD_METRICS})
        == len(STANDARD_METRICS)
        == len({one.sentence for one in STANDARD_METRICS})
    )
    assert all(one.sentence.endswith(".") for one in STANDARD_METRICS)
    assert all(metric(one.floor).shown == "floor" for one in STANDARD_METRICS if one.floor)


@pytest.mark.parametrize(
    "name",
    ["FD", "FD-inception", "FD-dinov2", "FID-classifier", "KIDs", "AUROC", "AUROC-", "AUROC-svhn other", "", "a\nb"],
)
def test_unregistered_metric_is_refused_in_one_line(name: str) -> None:
    """Above all: a distance is an FID with the standard extractor only, and then has no other name."""
    with pytest.raises(
        UserError, match=f"expected a metric of docs/reference/metrics.md, found {re.escape(repr(name))}"
    ) as told:
        metric(name)
    assert "\n" not in str(told.value)


def test_papers_metrics_are_registered() -> None:
    assert read_paper(ROOT / "config" / "paper.yaml").tables
    with pytest.raises(ValueError, match="expected a metric of docs/reference/metrics.md, found 'FIT'"):
        Table(title="t", metrics=["FIT"], rows=[])


def test_better_direction_of_every_extractor() -> None:
    assert [with_direction(metric("FID").named(extractor)) for extractor in EXTRACTORS] == [
        "FID ↓", "FD-classifier ↓", "FD-resnet56 ↓", "FD-DINOv2 ↓",
    ]  # fmt: skip
    assert with_direction("AUROC-svhn-energy") == "AUROC-svhn-energy ↑"
    assert metric("FD-classifier-heldout").better == "↓" and metric("IS").better == "↑"


@pytest.mark.parametrize(
    "score", ["", "-energy", "-likelihood", "-elbo", "-likelihood-elbo", "-typicality", "-complexity"]
)
def test_set_with_hyphens_in_its_name_has_its_metrics(score: str) -> None:
    for quantity in MEANINGS:
        assert metric(f"{quantity}-my-own-set{score}").pattern == f"{quantity}-{{set}}{score}"
