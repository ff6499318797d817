"""What the stage `evaluation` refuses, and what it makes of samples."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vaebm.config import EvaluationSettings, NVAENetworkSettings, UserError
from vaebm.evaluation import stage
from vaebm.evaluation.fidelity import Extractor, Reference, Statistics, frechet_distance
from vaebm.evaluation.likelihood import Likelihood
from vaebm.nvae.model import NVAE

SETTINGS = EvaluationSettings.model_validate(
    {"classifier": {"channels": 4, "epochs": 1, "batch": 50, "learning_rate": 0.01}, "kid_subsets": 3, "kid_subset_size": 20, "ood": []}
)


def shards(folder, *arrays):
    """Write arrays as shards."""
    paths = [folder / f"shard-{index:03}.npy" for index in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths


def test_samples_are_read_in_the_order_of_the_shards(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    samples = stage.read_samples(shards(tmp_path, images[:2], images[2:]), (3, 4, 6), 5)
    assert torch.equal(samples, torch.from_numpy(images).permute(0, 3, 1, 2))


def test_samples_that_do_not_fit_are_refused(tmp_path):
    good = np.zeros((5, 8, 8, 1), np.uint8)
    with pytest.raises(UserError, match="expected 6 samples, as samples.yaml says, found 5 in 1 shards"):
        stage.read_samples(shards(tmp_path, good), (1, 8, 8), 6)
    for wrong in (good.astype(np.float32), good[:, :7], good[..., 0]):
        with pytest.raises(UserError, match=r"expected samples \(n, 8, 8, 1\) uint8, found"):
            stage.read_samples(shards(tmp_path, wrong), (1, 8, 8), 5)
    whole = (tmp_path / "shard-000.npy").read_bytes()
    (tmp_path / "shard-000.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole .npy array"):
        stage.read_samples([tmp_path / "shard-000.npy"], (1, 8, 8), 5)
    with pytest.raises(UserError, match="found no file"):
        stage.read_samples([tmp_path / "shard-009.npy"], (1, 8, 8), 5)


def test_a_run_is_known_by_the_place_of_its_figures(tmp_path):
    run = stage.Run.of(tmp_path / "results" / "digits" / "vaebm" / "seed3" / "evaluation" / "metrics.json")
    assert (run.experiment, run.variant) == ("digits", "vaebm")
    with pytest.raises(UserError, match="expected a path results/EXPERIMENT/VARIANT/seedK/evaluation/metrics.json"):
        stage.Run.of(tmp_path / "metrics.json")


def test_distances_are_to_the_split_that_they_are_named_after():
    """Features of an extractor that reads off pixels: samples like the held-out images are nearer to these."""

    class Pixels(Extractor):
        def features(self, images):
            return images.flatten(1).double().numpy()

    generator = np.random.default_rng(0)
    train, held_out = (generator.normal(mean, 20, (40, 4)).clip(0, 255) for mean in (60, 180))
    reference = Reference(train, Statistics.of(train), Statistics.of(held_out), 0.0)
    samples = torch.from_numpy(generator.normal(180, 20, (50, 1, 2, 2)).clip(0, 255).astype(np.uint8))
    figures = stage.fidelity_figures(samples, reference, Pixels("pixels", "", Path()), SETTINGS, seed=0)
    statistics = Statistics.of(samples.flatten(1).double().numpy())
    assert figures["FD-classifier"]["value"] == frechet_distance(statistics, reference.train)
    assert figures["FD-classifier-heldout"]["value"] == frechet_distance(statistics, reference.heldout)
    assert figures["FD-classifier-heldout"]["value"] < figures["FD-classifier"]["value"] / 10
    assert {figure["samples"] for figure in figures.values()} == {50}


def test_the_model_belongs_to_the_run(tmp_path):
    """The energy of a VAEBM, the NVAE of the baseline, the generator of a GAN: what the samples came from stands beside the figures."""
    metrics, nothing = tmp_path / "digits" / "vaebm" / "seed0" / "evaluation" / "metrics.json", tmp_path / "none"
    for nvae, energy in ((tmp_path / "digits" / "nvae" / "seed0" / "model.pt", None), (nothing, tmp_path / "digits" / "vaebm" / "seed1" / "model.pt")):
        with pytest.raises(UserError, match="expected the model of this run, seed0/model.pt of the variant vaebm, found .*seed[01]/model.pt"):
            stage.run(nothing, nothing, nvae, energy, nothing, nothing, [], metrics)


def test_a_model_without_a_likelihood_is_scored_by_its_energy_alone():
    """Nothing else is made up, and what is lacking is named."""
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    found = stage.scores(None, images, lambda x: torch.arange(len(x)))
    assert list(found) == ["energy"] and found["energy"].tolist() == [0, -1, -2]
    assert list(stage.ood_figures(found, {"turned": found}, 3)) == ["AUROC-turned-energy"]
    assert stage.scores(None, images, None) == {}
    assert stage.lacking(["turned"], "why") == dict.fromkeys(["ELBO", "ELBO-train", "log-likelihood", "AUROC-turned"], "why")
    assert stage.lacking(["turned"], "") == {}


@pytest.mark.parametrize(("decoder", "crop"), [("normal", 0), ("bernoulli", 1), ("logistic_mixture", 0)])
def test_bits_per_dimension_are_those_of_a_probability(decoder, crop):
    """Of a discrete decoder −log₂ p(x) by the dimensions that the likelihood counts; of a density there are none."""
    network = {"channels_encoder": 4, "channels_decoder": 4, "groups": [1], "latents": 1, "preprocess_blocks": 1, "preprocess_cells": 1, "postprocess_cells": 1}
    nvae = NVAE(NVAENetworkSettings.model_validate(network | {"cells_encoder": 1, "cells_decoder": 1, "decoder": decoder, "crop": crop}), (3, 8, 8))
    held_out = Likelihood(elbo=torch.tensor([-30.0, -10.0]), importance=torch.tensor([-20.0, -10.0]))
    figures = stage.likelihood_figures(nvae, held_out, held_out, draws=5)
    size = 3 * (8 - 2 * crop) ** 2
    assert figures["ELBO"]["value"] == pytest.approx(-20 / size) and figures["log-likelihood"]["value"] == pytest.approx(-15 / size)
    bits = figures.get("bits-per-dimension")
    assert (bits is None) == (decoder == "normal")
    assert bits is None or bits["value"] == pytest.approx(15 / size / np.log(2))
