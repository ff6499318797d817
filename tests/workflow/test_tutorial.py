"""The tutorial: its Python, its list of jobs and its notebook, on the finished run of `tiny`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from vaebm.config.yaml_files import read_experiment

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial"
PAGE = (TUTORIAL / "digits.md").read_text()


def blocks(language):
    """The blocks of code in a language, in order, for the experiment `tiny`."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [
        re.sub(r"results/digits\b|\[digits\]", lambda name: name[0].replace("digits", "tiny"), one) for one in found
    ]


def test_the_python_of_the_tutorial_runs(tiny_run):
    printed = tiny_run.run(sys.executable, "-c", "\n".join(blocks("python")))
    assert re.fullmatch(r"(-?\d+\.\d+ -?\d+\.\d+\n){2}", printed)


def test_a_changed_setting_reruns_the_jobs_that_the_tutorial_lists(finished):
    """`tiny` has more files of samples than `digits`, each with a job of its own."""
    (command,) = [one for one in blocks("sh") if "--dry-run" in one]
    (listed,) = blocks("text")
    printed = finished.run("bash", "-euc", command)
    jobs, expected = (dict(re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)) for text in (printed, listed))
    files = {
        name: read_experiment(ROOT / f"config/experiments/{name}.yaml").samples.shards for name in ("tiny", "digits")
    }
    expected["samples"] = str(int(expected["samples"]) * files["tiny"] // files["digits"])
    assert {rule: count for rule, count in jobs.items() if rule not in ("all", "total")} == expected


def test_the_notebook_runs_from_the_top(tiny_run, monkeypatch):
    """Each cell gives outputs of the kinds that are stored, and the file stays small."""
    file = TUTORIAL / "digits.ipynb"
    assert file.stat().st_size < 200_000
    stored = nbformat.read(file, as_version=4)
    nbformat.validate(stored)
    run = nbformat.from_dict(stored)
    kinds = [[output.output_type for output in cell.get("outputs", [])] for cell in stored.cells]
    folder = 'Path("../../results/digits")'
    (first,) = [cell for cell in run.cells if folder in cell.source]
    first.source = first.source.replace(folder, f'Path("{tiny_run.folder}/results/tiny")')
    monkeypatch.setenv("PYTHONPATH", str(tiny_run.folder))
    NotebookClient(run, timeout=300, kernel_name="python3", coalesce_streams=True).execute()
    assert [[output.output_type for output in cell.get("outputs", [])] for cell in run.cells] == kinds
    assert sum("display_data" in kind for kind in kinds) == 8
