"""Bad input ends a run before anything starts, in one line that says where, what was expected, what was found."""

from __future__ import annotations

import re

import pytest

TINY = "config/experiments/tiny.yaml"
MISTAKES = {
    "unknown key": (
        TINY,
        "warmup_epochs: 1",
        "warmup_epoch: 1",
        ["tiny.yaml", "nvae.training.warmup_epoch:", "warmup_epochs,"],
    ),
    "out of range": (
        TINY,
        "average_decay: 0.9",
        "average_decay: 1.9",
        ["tiny.yaml", "ebm.training.average_decay", "1.9"],
    ),
    "another type": (TINY, "count: 200", "count: many", ["tiny.yaml", "samples.count", "many"]),
    "unknown data set": (TINY, "dataset: digits", "dataset: letters", ["tiny.yaml", "letters", "digits"]),
    "key twice": (
        TINY,
        "  batch: 50\n  shards: 2",
        "  batch: 50\n  batch: 50\n  shards: 2",
        ["tiny.yaml", "batch", "duplicate"],
    ),
    "no YAML": (TINY, "dataset: digits", "dataset: [digits", ["tiny.yaml"]),
    "unknown experiment": ("config/config.yaml", "  - digits", "  - digit", ["digit.yaml", "digits", "tiny"]),
    "unknown key of the run": ("config/config.yaml", "seeds:", "seed:", ["config.yaml", "seed", "experiments, seeds"]),
    "no seeds": ("config/config.yaml", "  - 0", "  - -1", ["config.yaml", "seeds", "-1"]),
    "configuration is no YAML": ("config/config.yaml", "experiments:", "experiments: [", ["config.yaml"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line_and_nothing_starts(clone, mistake):
    """The message, a status other than 0, no job."""
    path, old, new, expected = MISTAKES[mistake]
    clone.edit("config/config.yaml", "  - digits", "  - digits\n  - tiny")
    clone.edit(path, old, new)
    printed = clone.run("snakemake", "--cores", "1", fails=True)
    lines = [line for line in printed.splitlines() if not line.startswith("Using workflow specific profile")]
    assert len(lines) == 1, printed
    assert all(word in printed for word in expected), printed
    assert not (clone.folder / "data").exists() and not (clone.folder / "results" / "tiny").exists()


def test_an_incomplete_experiment_is_refused_in_one_line(clone):
    """Nothing starts, also of the others; what its stages need to be run by hand is there."""
    printed = clone.run("snakemake", "--cores", "1", "--config", "experiments=[tiny,nvae_mnist]", fails=True)
    lines = [line for line in printed.splitlines() if not line.startswith("Using workflow specific profile")]
    assert len(lines) == 1, printed
    lacks = "without a section ebm and without a section samples and without a section evaluation"
    assert lines[0].startswith(
        f"config/experiments/nvae_mnist.yaml: expected an experiment that Snakemake can run, found one {lacks}"
    )
    assert "`vaebm describe nvae_mnist`" in lines[0] and "results/nvae_mnist/" in lines[0]
    results = clone.folder / "results" / "nvae_mnist"
    written = sorted(str(path.relative_to(results)) for path in results.rglob("*") if path.is_file())
    assert written == ["nvae/seed0/nvae.yaml"]
    assert not (clone.folder / "data").exists() and not list((clone.folder / "results").rglob("*.log"))


@pytest.mark.parametrize("found", ["tiny", "[]", "[tiny,tiny]", "{tiny: 1}"])
def test_experiments_are_a_list_of_different_names(clone, found):
    """A name alone, as one might type it, gets told the form."""
    printed = clone.run("snakemake", "-n", "--config", f"experiments={found}", fails=True)
    assert "experiments: expected a list of different names, as [digits]" in printed


def test_damaged_data_stops_before_any_training(finished):
    """The comparison with the pin names the set; models stay as they were, and data.dvc too."""
    pins, model = (finished.folder / name for name in ("data.dvc", "results/tiny/nvae/seed0/model.safetensors"))
    before = pins.read_bytes(), model.stat().st_mtime_ns
    images = finished.folder / "data" / "digits" / "images.npy"
    images.write_bytes(images.read_bytes()[:-1] + b"\x07")
    printed = finished.snakemake(fails=True)
    assert (finished.folder / "results" / "data" / "digits.pin.log").read_text().count("\n") == 1
    assert "data/digits: expected the bytes that data.dvc pins" in printed and "rule nvae" not in printed
    assert (pins.read_bytes(), model.stat().st_mtime_ns) == before


def test_job_names_a_missing_data_file(finished, python):
    """Without Snakemake: the last line is the message, without a trace."""
    (finished.folder / "data" / "digits" / "images.npy").unlink()
    command = "nvae results/tiny/nvae/seed0/nvae.yaml --data data/digits/manifest.json --model again/model.safetensors"
    printed = finished.run(*python(*command.split()), fails=True)
    assert printed.splitlines()[-1].startswith("data/digits/images.npy: expected (1797, 8, 8, 1) uint8, found no file")
    assert "Traceback" not in printed


def test_seeds_of_the_command_line(clone):
    """As the README types it: everything for each of the seeds, one classifier, one table."""
    printed = clone.run("snakemake", "-n", "--config", "seeds=[0,1,2]", "experiments=[tiny]")
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE)}
    assert (jobs["nvae"], jobs["ebm"], jobs["evaluation"], jobs["classifier"], jobs["benchmarks"]) == (3, 3, 6, 1, 1)


@pytest.mark.parametrize("found", ["1", "[]", "[0,0]", "[one]", "[-1]", "[1.5]"])
def test_seeds_are_a_list_of_different_integers(clone, found):
    """Anything else is told the form."""
    assert "seeds: expected a list of different integers from 0, as [0, 1, 2]" in clone.run(
        "snakemake", "-n", "--config", f"seeds={found}", fails=True
    )
