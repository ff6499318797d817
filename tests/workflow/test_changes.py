"""Settings of the command line, really run: what reads them runs again, and nothing else."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest

GRID = "{samples.chain.steps: [0, 1, 3], samples.chain.step_size: [1e-2, 4e-2]}"


def hashes(folder: Path, *patterns: str) -> dict[str, str]:
    """Path → hash of every file that matches."""
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def notes(project, experiment):
    """Variant → remark on its rows in the table."""
    with (project.folder / "results/benchmarks.csv").open() as file:
        return {
            row["variant"]: row["note"] for row in csv.DictReader(file) if row["table"] == f"measured: {experiment}"
        }


def test_two_settings_rerun_what_reads_them(finished):
    """The models and the baseline's samples keep their bytes, the chain's samples change; results are overwritten."""
    changes = ("--config", "set=[samples.chain.steps=3, evaluation.kid_subsets=5]")
    assert finished.planned(*changes) == {"samples": 2, "evaluation": 2, "benchmarks": 1, "track": 1}
    kept = ("results/tiny/*/seed0/model.safetensors", "results/tiny/nvae/seed0/samples/*")
    samples = "results/tiny/vaebm/seed0/samples/*.npy"
    before, moved = hashes(finished.folder, *kept), hashes(finished.folder, samples)
    finished.snakemake(*changes)
    assert hashes(finished.folder, *kept) == before
    assert not moved.items() & hashes(finished.folder, samples).items()
    assert finished.planned(*changes) == {}
    assert finished.planned() == {"samples": 2, "evaluation": 2, "benchmarks": 1, "track": 1}, "the file has others"
    assert notes(finished, "tiny")["vaebm"] == "tiny is tiny.yaml with samples.chain.steps=3, evaluation.kid_subsets=5"


def test_named_run_and_grid_stay_apart(finished):
    """The name has models of its own; six chains take the energy of `vaebm`. Both stay in the table of later runs."""
    named = ("--config", "name=tiny_few", "set=[samples.shards=1, nvae.network.groups=[1, 1]]")
    trained = {"classifier": 1, "reference": 1, "nvae": 1, "ebm": 1, "samples": 2, "evaluation": 2, "tracking": 1}
    assert finished.planned(*named) == trained | {"benchmarks": 1, "track": 1}
    before = hashes(finished.folder, "results/tiny/**/*.npy", "results/tiny/**/*.safetensors")
    finished.snakemake(*named)
    assert finished.planned(*named) == {} == finished.planned()

    grid = ("--config", f"set=[variants.sweep.grid={GRID}, variants.sweep.samples.shards=1]")
    planned = {"same_energy": 6, "samples": 6, "evaluation": 6, "benchmarks": 1, "track": 1}
    assert finished.planned(*grid) == planned
    finished.snakemake(*grid)
    assert finished.planned(*grid) == {}
    assert before.items() <= hashes(finished.folder, "results/tiny/**/*.npy", "results/tiny/**/*.safetensors").items()
    said = notes(finished, "tiny")
    assert said["sweep_3"].endswith("samples.chain.steps=1, samples.chain.step_size=0.04") and len(said) == 8
    record = json.loads((finished.folder / "results/tiny/sweep_3/metrics.json").read_text())
    assert (
        record["grid"] == {"samples.chain.steps": 1, "samples.chain.step_size": 0.04} and record["chain"]["steps"] == 1
    )
    assert (finished.folder / "results/tiny/sweep.png").stat().st_size > 5000
    assert "sweep: FD-classifier" in (finished.folder / "results/report.html").read_text()
    text = (finished.folder / "results/benchmarks.md").read_text()
    assert "tiny_few is tiny with samples.shards=1, nvae.network.groups=[1, 1]." in text
    assert set(json.loads((finished.folder / "results/benchmarks.json").read_text())) == {"tiny", "tiny_few"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["set=[samples.chain.stepz=3]"], "set: samples.chain.stepz: unknown key; nearest keys: samples.chain.step"),
        (["set=[samples.chain.steps=many]"], "set: samples.chain.steps: Input should be a valid integer"),
        (["set=3"], "set: expected a list as [samples.chain.steps=40], found 3"),
        (["name=digits"], "name: digits is the experiment of config/experiments/digits.yaml; choose another"),
        (["name=a/b"], "name: expected a name of letters"),
        (["name=both", "experiments=[digits,tiny]"], "name: expected a single experiment, as 'experiments=[digits]'"),
        (["set=[variants.vaebm={grid: {samples.count: [50]}, metric: FIDD}]"], "FIDD"),
    ],
)
def test_mistake_is_one_line(clone, options, message):
    clone.edit("config/config.yaml", "  - digits\n  - stacked_digits\n", "  - tiny\n")
    printed = clone.snakemake("--dry-run", "--config", *options, fails=True).splitlines()
    (line,) = [line for line in printed if not line.startswith("Using workflow specific profile")]
    assert message in line
    assert not (clone.folder / "results/tiny").exists() or "FIDD" in line
