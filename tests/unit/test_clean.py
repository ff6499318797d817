"""`vaebm clean`: what finished trainings left behind, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from records import TRAINED

from vaebm.cli.clean import run
from vaebm.config.yaml_files import read_experiment, write_settings

TINY = Path(__file__).parents[2] / "config/experiments/tiny.yaml"


def age(path: Path, seconds: int) -> None:
    for each in (path, *path.rglob("*")):
        os.utime(each, (seconds, seconds))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Seed 0: a finished NVAE, older checkpoints, and newer ones; seed 1: an unfinished one; seed 2: other settings."""
    experiment = read_experiment(TINY)
    write_settings(experiment, tmp_path / "tiny", [0, 1, 2])
    for seed in (0, 1, 2):
        folder = tmp_path / f"tiny/nvae/seed{seed}"
        for name in ("old/snapshots/10-0.pt", "old/a.pt", "new/a.pt"):
            path = folder / "checkpoints" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(500_000))
        for name in ("model.safetensors", "samples/shard-000.npy"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"1")
        record = TRAINED | {"seed": seed, "settings": experiment.nvae.model_dump()}
        if seed != 1:
            (folder / "training.json").write_text(json.dumps(record))
        age(folder, 2000)
        age(folder / "checkpoints/old", 1000)
        age(folder / "checkpoints/new", 3000)
    path = tmp_path / "tiny/nvae/seed2/nvae.yaml"
    path.write_text(path.read_text().replace("epochs: 2", "epochs: 3"))
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_what_a_finished_training_left_is_removed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(results)
    run(results, delete=False)
    assert files(results) == before
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"{results}/tiny/nvae/seed0/checkpoints/old: 1.0 MB"
    assert last.startswith("`vaebm clean --delete` frees 1.0 MB")
    run(results, delete=True)
    old = "tiny/nvae/seed0/checkpoints/old"
    assert before - files(results) == {f"{old}/a.pt", f"{old}/snapshots/10-0.pt"}
    assert capsys.readouterr().out.splitlines()[-1].startswith("Freed 1.0 MB")


def test_without_a_model_nothing_is_finished(results: Path) -> None:
    (results / "tiny/nvae/seed0/model.safetensors").unlink()
    before = files(results)
    run(results, delete=True)
    assert files(results) == before
