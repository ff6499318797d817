"""Snakemake runs what changed, and what depends on it, and nothing else."""

from __future__ import annotations

import re
import sys
from pathlib import Path

TINY = "config/experiments/tiny.yaml"


def test_first_run_leaves_table_report_and_tracking(tiny_run):
    """Every file that results/README.md promises is there."""
    results = tiny_run.folder / "results"
    names = [
        "benchmarks.csv",
        "benchmarks.md",
        "benchmarks.json",
        "report.html",
        "tiny/tracking.json",
        "tiny/nvae/metrics.json",
        "tiny/vaebm/metrics.json",
    ]
    for name in names:
        assert (results / name).stat().st_size > 0, name
    assert (tiny_run.folder / "data" / "digits" / "manifest.json").is_file()


MODULE = """
module vaebm:
    snakefile:
        "workflow/Snakefile"
    config:
        config


use rule * from vaebm as vaebm_*


rule all:
    default_target: True
    input:
        rules.vaebm_all.input,
"""


def test_another_workflow_uses_this_one_as_a_module(finished):
    """Its rules have other names and the same files, so a finished run is up to date, and a changed setting is seen."""
    (finished.folder / "other.smk").write_text(MODULE)
    assert "Nothing to be done" in finished.snakemake("--snakefile", "other.smk")
    finished.edit(TINY, "kid_subset_size: 50", "kid_subset_size: 40")
    planned = {"vaebm_evaluation": 2, "vaebm_benchmarks": 1, "vaebm_track": 1}
    assert finished.planned("--snakefile", "other.smk") == planned


def test_second_run_does_nothing(tiny_run):
    """The same command again."""
    assert "Nothing to be done" in tiny_run.snakemake()


def test_evaluation_setting_reruns_the_evaluation_alone(finished):
    """Neither training nor sampling reads it."""
    finished.edit(TINY, "kid_subset_size: 50", "kid_subset_size: 40")
    assert finished.planned() == {"evaluation": 2, "benchmarks": 1, "track": 1}


def test_classifier_setting_reruns_what_is_measured_with_it(finished):
    """The classifier, its statistics and the evaluations."""
    finished.edit(TINY, "    channels: 8\n    epochs: 2", "    channels: 8\n    epochs: 3")
    assert finished.planned() == {"classifier": 1, "reference": 1, "evaluation": 2, "benchmarks": 1, "track": 1}


def test_energy_setting_keeps_the_nvae(finished):
    """Stages before the changed one stay."""
    finished.edit(TINY, "iterations: 20", "iterations: 21")
    assert finished.planned() == {"ebm": 1, "samples": 2, "evaluation": 1, "benchmarks": 1, "track": 1}


def test_resources_and_comments_rerun_nothing(finished):
    """They stand outside the settings files; nor does the same content with a new date count."""
    finished.edit(TINY, "mem_mb: 1000", "mem_mb: 900")
    (finished.folder / "data.dvc").touch()
    assert finished.planned() == {}


def test_another_seed_adds_its_own_runs(finished):
    """Data, classifier and the first seed's runs are shared."""
    finished.edit("config/config.yaml", "  - 0\n", "  - 0\n  - 1\n")
    assert finished.planned() == {"nvae": 1, "ebm": 1, "samples": 4, "evaluation": 2, "benchmarks": 1, "track": 1}


def test_the_comparison_with_the_pin_is_no_reason_to_train(finished):
    """It comes before every training, as its edited text here, which asks for it again."""
    with (finished.folder / "data.dvc").open("a") as file:
        file.write("# a remark\n")
    assert finished.planned() == {"pin": 1}


def test_a_run_of_one_experiment_leaves_the_data_of_others_alone(tiny_run):
    """`stacked_digits` alone: the digits of `tiny`, which data.dvc lists too, are not prepared again."""
    planned = tiny_run.snakemake("--dry-run", "--config", "experiments=[stacked_digits]")
    assert "data/stacked_digits/manifest.json" in planned
    assert not re.search(r"^rule data:\n +output: data/digits/", planned, re.MULTILINE)


def test_lint(clone):
    """Snakemake's own advice."""
    assert "in a good condition" in clone.run("snakemake", "--lint")


def test_slurm_profile(clone):
    """Works as typed; asks for no GPU where the experiment has none, and needs no accounting database."""
    printed = clone.run("snakemake", "--profile", "profiles/slurm", "-n")
    assert "benchmarks" in printed and "gpu=0" in printed
    assert "slurm-status-command: squeue" in (clone.folder / "profiles" / "slurm" / "config.yaml").read_text()


def test_one_server_with_gpus(clone):
    """Works as typed."""
    assert "benchmarks" in clone.run("snakemake", "--cores", "all", "--resources", "gpu=4", "-n")


def test_report(tiny_run, tmp_path):
    """Snakemake's report holds our page, and is made without a network."""
    tiny_run.snakemake("--report", str(tmp_path / "report.zip"))
    assert (tmp_path / "report.zip").stat().st_size > 100_000


def test_snakefile_is_short():
    """The rules stand with their stages."""
    assert len(Path("workflow/Snakefile").read_text().splitlines()) <= 45


def test_what_the_snakefile_imports_is_light(clone):
    """Every job reads the Snakefile again."""
    program = "import sys, vaebm.config.pipeline; sys.exit(bool({'torch', 'mlflow', 'numpy'} & set(sys.modules)))"
    clone.run(sys.executable, "-c", program)
