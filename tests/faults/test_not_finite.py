"""NaN that a training or an evaluation makes ends in one line, and in no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from networks import NETWORK

from vaebm.config.yaml_files import read_settings
from vaebm.data import write_images
from vaebm.evaluation.classifier import Classifier
from vaebm.evaluation.extractors import Extractor
from vaebm.nvae import train
from vaebm.nvae.train import NVAETrainer, Step
from vaebm.records.files import recording
from vaebm.records.results import Measurement
from vaebm.system.checkpoint import save_model
from vaebm.system.errors import UserError
from vaebm.training.loop import Limits

NVAE_RUN = {
    "network": NETWORK.model_dump(),
    "training": {"epochs": 2, "batch": 4, "max_skipped": 99, "warmup_epochs": 1},
}


def test_training_that_skips_every_step_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    splits = {"train": (0, 8), "heldout": (8, 12)}
    write_images(tmp_path / "data", "mine", images, np.zeros(12, np.int64), splits, {})
    (tmp_path / "nvae.yaml").write_text(yaml.safe_dump({"seed": 0, "nvae": NVAE_RUN}))
    kl = [1.0] * sum(NETWORK.groups)

    def skipped(self: NVAETrainer, *arguments: Any, **more: Any) -> Step:
        return Step(False, float("nan"), kl, 0.0, 0.0)

    monkeypatch.setattr(NVAETrainer, "step", skipped)
    with pytest.raises(UserError, match="nvae.yaml: the training diverged: 4 of 4 steps were skipped.*learning_rate"):
        train.run(
            tmp_path / "nvae.yaml", tmp_path / "data" / "manifest.json", tmp_path / "model.safetensors",
            threads=1, gpus=0, limits=Limits(),
        )  # fmt: skip
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "training.json").exists()


def test_model_with_weights_that_are_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model.safetensors: b: expected finite weights"):
        save_model(tmp_path / "model.safetensors", "energy", {}, {"a": torch.ones(2), "b": torch.tensor([0.0, np.nan])})
    assert not (tmp_path / "model.safetensors").exists()


def test_features_that_are_not_finite_are_one_line(tmp_path: Path) -> None:
    model = Classifier(4, (1, 8, 8), 10)
    network = {"channels": 4, "shape": [1, 8, 8], "classes": 10}
    weights = {name: value * 1e38 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_model(tmp_path / "model.pt", "classifier", network, weights)
    with pytest.raises(UserError, match="model.pt: expected finite features"):
        Extractor.of("classifier", tmp_path / "model.pt").extract(
            torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
        )


def test_figure_that_is_not_finite_is_one_line_with_file_field_and_value(tmp_path: Path) -> None:
    with (
        pytest.raises(
            UserError, match="metrics.json: Measurement.value: Input should be a finite .*, found nan; again$"
        ),
        recording(tmp_path / "metrics.json", "again"),
    ):
        Measurement(value=float("nan"), samples=3)


@pytest.mark.parametrize("seed", [None, "0", [0], 0.5, True, {}])
def test_settings_with_another_seed_are_one_line(seed: object, tmp_path: Path) -> None:
    (tmp_path / "nvae.yaml").write_text(yaml.safe_dump({"seed": seed, "nvae": NVAE_RUN}))
    with pytest.raises(UserError, match="nvae.yaml: seed: expected an integer, found"):
        read_settings(tmp_path / "nvae.yaml", train.NVAESettings)
