"""What describes the project to other machines: container, checks on GitHub, catalogues."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

MODULE = """
module vaebm:
    snakefile:
        "{}/workflow/Snakefile"
    config:
        config


use rule * from vaebm as vaebm_*
"""
PLUGIN = """
import numpy as np

from vaebm.config import DATASETS, DatasetFacts


def prepare():
    images = np.full((160, 8, 8, 1), 3, np.uint8)
    return images, np.zeros(160, np.int64), {"train": (0, 120), "heldout": (120, 160)}, {"plain": 3}


DATASETS["plain"] = DatasetFacts(8, 1, 120, 40, prepare)
"""

ROOT = Path(__file__).parent.parent.parent


def run(*command: str) -> None:
    """A command in the project's folder, which has to succeed."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_container_and_checks_pass_their_linters():
    """Hadolint, GitHub's schema of workflows, and zizmor, which finds rights that an attacker can use."""
    run("hadolint", "Dockerfile")
    run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", ".github/workflows/checks.yml")
    run("zizmor", "--offline", "--no-progress", ".github")


def test_the_oldest_torch_that_is_tested_is_the_oldest_allowed():
    """In pyproject.toml and in the checks."""
    (needed,) = [one for one in project()["dependencies"] if one.startswith("torch>")]
    tested = re.search(r"torch==(\d+\.\d+)\.\*", (ROOT / ".github/workflows/checks.yml").read_text())
    assert tested is not None and needed == f"torch>={tested[1]}"


def test_catalogues_know_the_same_project():
    """Licence, authors and keywords are those of pyproject.toml and CITATION.cff."""
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert zenodo["license"] == citation["license"] == project()["license"]
    assert [one["name"] for one in zenodo["creators"]] == [one["name"] for one in citation["authors"]]
    assert zenodo["keywords"] == project()["keywords"]
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["software-stack-deployment"]["conda"] is True and (ROOT / "environment.yml").exists()
    assert (ROOT / "config/README.md").exists() and (ROOT / "workflow/Snakefile").exists()


def project() -> dict:
    """The section `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("snakefile", "plugins"), [("workflow/Snakefile", "plugins"), ("other/main.smk", "other/plugins")]
)
def test_plugins_next_to_the_snakefile_of_another_workflow_are_found(clone, tmp_path, snakefile, plugins):
    """By the plan and by its jobs, where that workflow uses this one as a module."""
    folder = tmp_path / "mine"
    shutil.copytree(clone.folder / "config", folder / "config")
    (folder / "config/experiments/mine.yaml").write_text(
        "base: tiny\ndata: {dataset: plain}\nevaluation: {ood: [interpolation]}\n"
    )
    for path, content in ((snakefile, MODULE.format(clone.folder)), (f"{plugins}/plain.py", PLUGIN)):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(content)
    command = ["snakemake", "--cores", "1", "--config", "experiments=[mine]", "--", "data/plain/manifest.json"]
    if snakefile.startswith("other"):
        command[1:1] = ["--snakefile", snakefile]
    done = subprocess.run(command, cwd=folder, env=clone.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((folder / "data/plain/manifest.json").read_text())["source"] == {"plain": 3}
