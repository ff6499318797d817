"""What the stage `evaluation` refuses, and what it makes of samples."""

import re

import numpy as np
import pytest
import torch
from experiments import written_out

from vaebm.config import EvaluationSettings, NVAENetworkSettings
from vaebm.config.yaml_files import read_experiment
from vaebm.evaluation import inputs, measurements, stage
from vaebm.evaluation.extractors import ExtractorOutput
from vaebm.evaluation.reference import Reference
from vaebm.measures.frechet import Statistics, frechet_distance
from vaebm.model import Estimates
from vaebm.nvae.model import NVAE
from vaebm.system.errors import UserError

WRITTEN = {
    "classifier": {"channels": 4, "epochs": 1, "batch": 50, "learning_rate": 0.01},
    "bootstrap": 20,
    "inception_splits": 5,
    "precision_recall": {"images": 30, "neighbours": 3},
    "steps": {"images": 10, "counts": [0, 2]},
    "kid_subsets": 3,
    "kid_subset_size": 20,
    "ood": [],
}
SETTINGS = EvaluationSettings.model_validate(WRITTEN)


def shards(folder, *arrays):
    """Write arrays as shards."""
    paths = [folder / f"shard-{index:03}.npy" for index in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths


def test_samples_are_read_in_the_order_of_the_shards(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    samples = inputs.read_samples(shards(tmp_path, images[:2], images[2:]), (3, 4, 6), 5)
    assert torch.equal(samples, torch.from_numpy(images).permute(0, 3, 1, 2))


def test_samples_that_do_not_fit_are_refused(tmp_path):
    good = np.zeros((5, 8, 8, 1), np.uint8)
    with pytest.raises(UserError, match="expected 6 samples, as samples.yaml says, found 5 in 1 shards"):
        inputs.read_samples(shards(tmp_path, good), (1, 8, 8), 6)
    for wrong in (good.astype(np.float32), good[:, :7], good[..., 0]):
        with pytest.raises(UserError, match=r"expected samples \(n, 8, 8, 1\) uint8, found"):
            inputs.read_samples(shards(tmp_path, wrong), (1, 8, 8), 5)
    whole = (tmp_path / "shard-000.npy").read_bytes()
    (tmp_path / "shard-000.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole .npy array"):
        inputs.read_samples([tmp_path / "shard-000.npy"], (1, 8, 8), 5)
    with pytest.raises(UserError, match="found no file"):
        inputs.read_samples([tmp_path / "shard-009.npy"], (1, 8, 8), 5)


def test_a_run_is_known_by_the_place_of_its_figures(tmp_path):
    run = inputs.run_folder(tmp_path / "results" / "digits" / "vaebm" / "seed3" / "evaluation" / "metrics.json")
    assert run.parts[-3:] == ("digits", "vaebm", "seed3")
    with pytest.raises(UserError, match="expected a path results/EXPERIMENT/VARIANT/seedK/evaluation/metrics.json"):
        inputs.run_folder(tmp_path / "metrics.json")


def training_of(reference):
    return measurements.training_balls(reference, SETTINGS, seed=0)


def fidelity_of(output, reference):
    return measurements.measure_fidelity(output, reference, training_of(reference), SETTINGS, seed=0)


def test_figures_are_about_what_they_are_named_after():
    """Samples like the held-out images are nearer to these; of a stack there is no inception score."""
    random = np.random.default_rng(0)
    train, held_out, features = (random.normal(mean, 1, (40, 4)) for mean in (0, 3, 3))
    reference = Reference(train, Statistics.of(train), Statistics.of(held_out), 0.0, held_out)
    judged = ExtractorOutput(features, random.normal(size=(40, 1, 10)))
    found = fidelity_of(judged, reference)
    statistics = Statistics.of(features)
    assert found["FD-classifier"].value == frechet_distance(statistics, reference.train)
    assert (
        found["FD-classifier-heldout"].value
        == frechet_distance(statistics, reference.heldout)
        < found["FD-classifier"].value / 5
    )
    assert found["precision-classifier"].value < 0.3 and found["neighbour-ratio-classifier"].value > 1.5
    assert {name: figure.samples for name, figure in found.items()} == {
        "FD-classifier": 40,
        "FD-classifier-heldout": 40,
        "KID-classifier": 40,
        "precision-classifier": 30,
        "recall-classifier": 30,
        "density-classifier": 30,
        "coverage-classifier": 30,
        "authenticity-classifier": 30,
        "neighbour-ratio-classifier": 30,
        "IS-classifier": 40,
    }
    assert {name for name, figure in found.items() if not figure.interval} == {"neighbour-ratio-classifier"}
    for figure in found.values():
        low, high = figure.interval or [figure.value] * 2
        assert low <= figure.value <= high
    assert found == fidelity_of(judged, reference), "a function of the seed"
    equal = reference._replace(train_features=np.ones((40, 4)), heldout_features=np.ones((20, 4)))
    alike = fidelity_of(judged._replace(features=np.ones((40, 4))), equal)
    assert alike["neighbour-ratio-classifier"].value == 1 and alike["authenticity-classifier"].value == 0
    stacks = fidelity_of(judged._replace(logits=random.normal(size=(40, 3, 10))), reference)
    assert stacks == {name: figure for name, figure in found.items() if name != "IS-classifier"}


def test_held_out_images_are_measured_like_samples():
    """Only what does not depend on the number of images; nothing of neighbours where there are too few."""
    random = np.random.default_rng(0)
    train, held_out = random.normal(size=(60, 4)), random.normal(1, 1, size=(40, 4))
    reference = Reference(train, Statistics.of(train), Statistics.of(held_out), 1.5, held_out)
    found = measurements.measure_held_out(reference, training_of(reference), "classifier")
    judged = ExtractorOutput(held_out, random.normal(size=(40, 1, 10)))
    as_samples = fidelity_of(judged, reference)
    assert found.pop("FD-classifier").model_dump(exclude_none=True) == {"value": 1.5, "samples": 40}
    assert {name: one.value for name, one in found.items()} == {
        name: as_samples[name].value
        for name in ("precision-classifier", "density-classifier", "authenticity-classifier")
    }
    few = reference._replace(heldout_features=held_out[:3])
    assert list(measurements.measure_held_out(few, training_of(few), "inception")) == ["FID"]


def test_distance_is_extrapolated_from_twenty_samples_per_feature_on():
    random = np.random.default_rng(0)
    train, features, logits = random.normal(size=(40, 4)), random.normal(size=(80, 4)), random.normal(size=(80, 1, 10))
    reference = Reference(train, Statistics.of(train), Statistics.of(train), 0.0, train)
    for count in (79, 80):
        judged = ExtractorOutput(features[:count], logits[:count])
        found = fidelity_of(judged, reference)
        assert ("FD-classifier-infinity" in found) == (count == 80)


@pytest.mark.parametrize(
    ("group", "wrong", "message"),
    [
        ("steps", {"images": 10, "counts": [5, 0]}, r"expected rising numbers of steps, found \[5, 0\]"),
        ("steps", {"images": 10, "counts": []}, "expected rising numbers of steps"),
        ("precision_recall", {"images": 3, "neighbours": 3}, "neighbours must be below images, 3, found 3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(group, wrong, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSettings.model_validate(WRITTEN | {group: wrong})


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "images: 1500",
            "images: 1501",
            "evaluation.precision_recall.images: expected at most the 1500 training images, found 1501",
        ),
        (
            "images: 500\n    counts",
            "images: 10001\n    counts",
            "evaluation.steps.images: expected at most the 10000 samples, found 10001",
        ),
        (
            "inception_splits: 10",
            "inception_splits: 10001",
            "evaluation.inception_splits: expected at most the 10000 samples, found 10001",
        ),
        (
            "epochs: 60\n    batch: 50",
            "epochs: 60\n    batch: 1501",
            "evaluation.classifier.batch: expected at most the 1500 training images( of digits)?, found 1501",
        ),
    ],
)
@pytest.mark.parametrize("dataset", ["digits", "stacked_digits"])
def test_more_images_than_there_are_end_before_the_run(tmp_path, dataset, before, after, message):
    """The classifier of stacks sees the images that are stacked, of which there are fewer than stacks."""
    text = written_out("digits").replace("dataset: digits", f"dataset: {dataset}")
    if dataset == "stacked_digits":
        text = re.sub(r"  ood:\n(  - .*\n)+", "  ood: []\n", text)
    assert before in text
    (tmp_path / "mine.yaml").write_text(text.replace(before, after))
    if dataset == "stacked_digits" and "precision_recall" in message:
        read_experiment(tmp_path / "mine.yaml")  # there are 15,000 of these
        return
    with pytest.raises(UserError, match=message):
        read_experiment(tmp_path / "mine.yaml")


def test_the_model_belongs_to_the_run(tmp_path):
    """The energy of a VAEBM, the NVAE of the baseline, the generator of a GAN: the model belongs to the run."""
    metrics, nothing = tmp_path / "digits" / "vaebm" / "seed0" / "evaluation" / "metrics.json", tmp_path / "none"
    for nvae, energy in (
        (tmp_path / "digits" / "nvae" / "seed0" / "model.pt", None),
        (nothing, tmp_path / "digits" / "vaebm" / "seed1" / "model.pt"),
    ):
        with pytest.raises(
            UserError,
            match="the model of this run, seed0/model.safetensors of the variant vaebm, found .*seed[01]/model.pt",
        ):
            stage.run(inputs.Files(nothing, nothing, nvae, energy, nothing, nothing, nothing, [], metrics))


@pytest.mark.parametrize(("decoder", "crop"), [("normal", 0), ("bernoulli", 1), ("logistic_mixture", 0)])
def test_bits_per_dimension_are_those_of_a_probability(decoder, crop):
    """Of a discrete decoder −log₂ p(x) by the dimensions that the likelihood counts; of a density there are none."""
    network = {
        "channels_encoder": 4,
        "channels_decoder": 4,
        "groups": [1],
        "latents": 1,
        "preprocess_blocks": 1,
        "preprocess_cells": 1,
        "postprocess_cells": 1,
    }
    nvae = NVAE(
        NVAENetworkSettings.model_validate(
            network | {"cells_encoder": 1, "cells_decoder": 1, "decoder": decoder, "crop": crop}
        ),
        (3, 8, 8),
    )
    held_out = Estimates(elbo=torch.tensor([-30.0, -10.0]), importance=torch.tensor([-20.0, -10.0]), energy=None)
    found = measurements.measure_likelihood(nvae, held_out, held_out, draws=5)
    size = 3 * (8 - 2 * crop) ** 2
    assert found["ELBO"].value == pytest.approx(-20 / size) and found["log-likelihood"].value == pytest.approx(
        -15 / size
    )
    bits = found.get("bits-per-dimension")
    assert (bits is None) == (decoder == "normal")
    assert bits is None or bits.value == pytest.approx(15 / size / np.log(2))


def test_an_energy_needs_its_nvae(tmp_path):
    metrics, nothing = tmp_path / "digits" / "vaebm" / "seed0" / "evaluation" / "metrics.json", tmp_path / "none"
    with pytest.raises(UserError, match=r"--energy: expected the NVAE below it too \(--nvae\), found none"):
        stage.run(inputs.Files(nothing, nothing, None, nothing, nothing, nothing, nothing, [nothing], metrics))
