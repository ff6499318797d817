"""Settings of the command line, really run: what reads them runs again, and nothing else."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest

TABLE = "results/benchmarks.json"
"""Without the mirror in MLflow, which other tests look at."""
GRID = "{samples.chain.steps: [0, 1], samples.chain.step_size: [1e-2, 4e-2]}"


def hashes(folder: Path, *patterns: str) -> dict[str, str]:
    """Path → hash of every file that matches."""
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def notes(project, experiment):
    """Variant → remark on its measured rows in the table."""
    with (project.folder / "results/benchmarks.csv").open() as file:
        return {
            row["variant"]: row["note"]
            for row in csv.DictReader(file)
            if row["table"] == f"measured: {experiment}" and row["measured"]
        }


def test_two_settings_and_a_grid_rerun_what_reads_them(finished):
    """Models and the samples of `nvae` keep their bytes; four chains take the energy of `vaebm`."""
    two = "samples.chain.steps=3, evaluation.kid_subsets=5"
    after = {"benchmarks": 1, "track": 1}
    assert finished.planned("--config", f"set=[{two}]") == {"samples": 2, "evaluation": 2, **after}
    changes = ("--config", f"set=[{two}, variants.sweep.grid={GRID}, variants.sweep.samples.shards=1]")
    assert finished.planned(*changes) == {"same_energy": 4, "samples": 6, "evaluation": 6, **after}
    kept = ("results/tiny/*/seed0/model.safetensors", "results/tiny/nvae/seed0/samples/*")
    samples = "results/tiny/vaebm/seed0/samples/*.npy"
    before, moved = hashes(finished.folder, *kept), hashes(finished.folder, samples)
    finished.snakemake(TABLE, *changes)
    assert before.items() <= hashes(finished.folder, *kept).items()
    assert not moved.items() & hashes(finished.folder, samples).items()
    assert finished.planned(TABLE, *changes) == {}
    assert finished.planned() == {"samples": 2, "evaluation": 2, **after}, "the file has other values"

    said = notes(finished, "tiny")
    assert len(said) == 6 and said["vaebm"].startswith("tiny is tiny.yaml with samples.chain.steps=3, evaluation.kid")
    assert said["sweep_3"].endswith("; samples.chain.steps=1, samples.chain.step_size=0.04")
    record = json.loads((finished.folder / "results/tiny/sweep_3/metrics.json").read_text())
    values = {"samples.chain.steps": 1, "samples.chain.step_size": 0.04}
    assert record["grid"] == values and record["chain"]["steps"] == 1
    assert (finished.folder / "results/tiny/sweep.png").stat().st_size > 5000
    assert "sweep: FD-classifier" in (finished.folder / "results/report.html").read_text()


def test_named_run_stays_apart(finished):
    """It has models of its own, and the name of its base in the table."""
    named = ("--config", "name=tiny_few", "set=[samples.shards=1, nvae.network.groups=[1, 1]]")
    trained = {"classifier": 1, "reference": 1, "nvae": 1, "ebm": 1, "samples": 2, "evaluation": 2, "tracking": 1}
    assert finished.planned(*named) == trained | {"benchmarks": 1, "track": 1}
    before = hashes(finished.folder, "results/tiny/**/*.npy", "results/tiny/**/*.safetensors")
    finished.snakemake(TABLE, *named)
    assert finished.planned(TABLE, *named) == {}
    assert finished.planned(TABLE) == {"benchmarks": 1}, "the table of other runs"
    assert before == hashes(finished.folder, "results/tiny/**/*.npy", "results/tiny/**/*.safetensors")
    text = (finished.folder / "results/benchmarks.md").read_text()
    assert "tiny_few is tiny with samples.shards=1, nvae.network.groups=[1, 1]." in text
    finished.run("python", "-m", "vaebm", "benchmarks")  # its record says from which file it is
    assert set(json.loads((finished.folder / "results/benchmarks.json").read_text())) == {"tiny", "tiny_few"}


def test_run_that_began_before_the_present_table_runs(finished):
    """Its settings are older than the table of the other run, and its models are missing."""
    named = ("--config", "name=tiny_begun")
    finished.snakemake("results/tiny_begun/tracking.json", *named)
    finished.snakemake("--forcerun", "benchmarks")
    trained = {"classifier": 1, "reference": 1, "nvae": 1, "ebm": 1, "samples": 4, "evaluation": 2}
    assert finished.planned(*named) == trained | {"benchmarks": 1, "track": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["set=[samples.chain.stepz=3]"], "set: samples.chain.stepz: unknown key; nearest keys: samples.chain.step"),
        (
            ["name=digits", "set=[samples.count=60]"],
            "name: digits is the experiment of config/experiments/digits.yaml;",
        ),
        (
            ["set=[variants.vaebm={grid: {samples.chain.steps: [3]}, metric: FIDD}]"],
            "metric of docs/reference/metrics.md, found 'FIDD'",
        ),
    ],
)
def test_mistake_is_one_line(clone, options, message):
    printed = clone.snakemake("--dry-run", "--config", "experiments=[tiny]", *options, fails=True).splitlines()
    (line,) = [line for line in printed if not line.startswith("Using workflow specific profile")]
    assert message in line
