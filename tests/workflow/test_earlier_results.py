"""Results of an earlier version (data/README.md) are up to date, and settings that are added later keep them so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vaebm.ebm import train as ebm
from vaebm.nvae import train as nvae
from vaebm.system.device import Interrupted
from vaebm.training.loop import Limits

TINY = "config/experiments/tiny.yaml"
ENERGY_AND_AFTER = {"ebm": 1, "samples": 2, "evaluation": 1, "benchmarks": 1, "track": 1}


@pytest.fixture
def earlier(clone):
    """The project as it is now, around the results as they were."""
    shutil.unpack_archive(Path(__file__).parent / "data" / "tiny.tar.xz", clone.folder)
    clone.edit("config/config.yaml", "  - digits\n  - stacked_digits\n", "  - tiny\n")
    before = {path: path.stat().st_mtime_ns for path in (clone.folder / "results").rglob("*")}
    refused = clone.snakemake("--dry-run", fails=True)
    assert "found the model of an earlier version; `vaebm convert results` writes it" in refused
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is changed, nothing retrained"
    assert clone.run("python", "-m", "vaebm", "convert", "results").count("converted from model.pt") == 3
    return clone


def settings_files(project):
    """Path → content and time of every settings file."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (project.folder / "results").rglob("*.yaml")}


def test_earlier_results_are_up_to_date(earlier):
    before = settings_files(earlier)
    assert earlier.planned() == {}
    assert settings_files(earlier) == before and len(before) == 8


def test_a_changed_setting_plans_its_stage_and_those_after(earlier):
    """So that the test above can fail."""
    earlier.edit(TINY, "iterations: 20", "iterations: 21")
    assert earlier.planned() == ENERGY_AND_AFTER


def test_a_setting_that_every_group_gets_later_plans_nothing_until_it_is_changed(earlier):
    earlier.edit("vaebm/config/base.py", "    model_config = ", '    added: str = later("plain")\n    model_config = ')
    before = settings_files(earlier)
    assert earlier.planned() == {} and settings_files(earlier) == before
    earlier.edit(TINY, "    iterations: 20", "    added: other\n    iterations: 20")
    assert earlier.planned() == ENERGY_AND_AFTER


def test_trainings_have_the_fingerprints_that_they_had(earlier, tmp_path):
    """Each is stopped after its first step; its checkpoint stands in a folder named by the fingerprint."""
    results, data, limits = (
        earlier.folder / "results" / "tiny",
        earlier.folder / "data" / "digits" / "manifest.json",
        Limits(minutes=0),
    )
    with pytest.raises(Interrupted):
        nvae.run(results / "nvae/seed0/nvae.yaml", data, tmp_path / "nvae/model.pt", threads=1, gpus=0, limits=limits)
    with pytest.raises(Interrupted):
        ebm.run(
            results / "vaebm/seed0/ebm.yaml",
            data,
            results / "nvae/seed0/model.pt",
            tmp_path / "vaebm/model.pt",
            threads=1,
            gpus=0,
            limits=limits,
        )
    for model in ("nvae", "vaebm"):
        recorded = json.loads((results / model / "seed0" / "training.json").read_text())["fingerprint"]
        assert [path.name for path in (tmp_path / model / "checkpoints").iterdir()] == [recorded[:16]]
