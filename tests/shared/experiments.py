"""Experiment files with every setting written out, for tests that change one by its text."""

from __future__ import annotations

from pathlib import Path

import yaml

from vaebm.config.yaml_files import read_experiment

EXPERIMENTS = Path(__file__).parents[2] / "config" / "experiments"


def written_out(name: str) -> str:
    """The settings of an experiment of the project as text, those with defaults included."""
    return yaml.safe_dump(read_experiment(EXPERIMENTS / f"{name}.yaml").model_dump(), sort_keys=False)
