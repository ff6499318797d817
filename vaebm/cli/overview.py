"""Output of `vaebm` without a command: the stages in order, their folders, and the next step."""

from pathlib import Path

OVERVIEW = """\
VAEBM: an energy-based model on a hierarchical VAE, from data to the results table.

An experiment is one file of config/experiments/. Its stages, in order, each also a command:
  data        prepare the images                        data/DATASET/
  nvae        train the hierarchical VAE                results/EXPERIMENT/nvae/seedK/
  prior       train an energy on its noise (optional)   results/EXPERIMENT/prior/seedK/
  ebm         train the energy network on it            results/EXPERIMENT/VARIANT/seedK/
  samples     draw images with the chain                results/EXPERIMENT/VARIANT/seedK/samples/
  evaluation  measure images and models                 results/EXPERIMENT/VARIANT/seedK/evaluation/
  benchmarks  tables and report, with the paper         results/benchmarks.md, results/report.html

`make run` (or `snakemake --cores all`, with the environment active) runs all of them, `make test` the tests.
`vaebm --help` lists every command, `vaebm STAGE --help` ends with an example, docs/how-to/ answers "how do I".
"""


def is_checkout(folder: Path) -> bool:
    """True if `folder` has the pipeline."""
    return (folder / "Snakefile").is_file() and (folder / "config" / "experiments").is_dir()


def next_step(folder: Path) -> str:
    """One line with the next command in `folder`."""
    if not is_checkout(folder):
        if parent := next(filter(is_checkout, folder.parents), None):
            return f"Next: `cd {parent}`, where the pipeline is."
        return "Next: go to a checkout of the project, where the Snakefile is; this folder has no pipeline to run."
    results = folder / "results"
    if (results / "benchmarks.md").is_file():
        return (
            "Next: read results/benchmarks.md and results/report.html; `mlflow ui` shows the runs, "
            "`make run` makes what is missing or changed."
        )
    if any(results.rglob("*.log")):  # every job leaves one
        return "Next: `make run` resumes the run that was started here."
    return "Next: `make run` makes the experiments of config/config.yaml."


def guide(folder: Path) -> str:
    """The overview, and the next step in `folder`."""
    return f"{OVERVIEW}\n{next_step(folder.absolute())}"
