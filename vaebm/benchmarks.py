"""Stage `benchmarks`: our figures over the seeds, beside the paper's, as csv, Markdown, json and a page."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd

from vaebm.checkpoint import write_json, writing
from vaebm.config import UserError
from vaebm.paper import read_paper
from vaebm.report import page
from vaebm.settings import read_experiment
from vaebm.table import COLUMNS, Measured, Record, lines, markdown

SAME = ("data", "extractor", "chain", "versions")
"""What the seeds of a variant must share for a mean over them to mean something."""


def read_metrics(path: Path) -> Record:
    """A metrics.json.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        content: Record = json.loads(path.read_text())
        if not {"experiment", "variant", "metrics"} <= content.keys():
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"{path}: expected the figures of a run, found no file; `vaebm evaluation` makes it") from None
    except (ValueError, AttributeError):
        raise UserError(f"{path}: expected the figures of a run, found a damaged file or one of another kind; remove it and run again") from None
    return content


def over_seeds(runs: list[Record], configuration: str, tracking: str | None) -> Record:
    """One record of the runs of a variant: the mean of every figure and its spread, the standard deviation over the seeds.

    Args:
        runs: content of the metrics.json of each seed.
        configuration: hash of the experiment's settings.
        tracking: id of its MLflow run.

    Raises:
        UserError: the runs differ in data, extractor, chain, libraries or metrics, or two have the same seed.
    """
    runs = sorted(runs, key=lambda run: run["seed"])
    first, name = runs[0], f"{runs[0]['experiment']}/{runs[0]['variant']}"
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{name}: expected each seed once, found {seeds}")
    for run in runs[1:]:
        differing = [key for key in SAME if run[key] != first[key]] + (["metrics"] if run["metrics"].keys() != first["metrics"].keys() else [])
        if differing:
            raise UserError(f"{name}: expected the same {differing[0]} for all seeds, found others for seed {run['seed']} than for {seeds[0]}; run it again")
    figures = {}
    for metric in first["metrics"]:
        values = [run["metrics"][metric]["value"] for run in runs]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        figures[metric] = {"value": float(np.mean(values)), "spread": spread, "samples": first["metrics"][metric]["samples"], "seeds": seeds}
    changed = [run["changed"] for run in runs]
    return {
        "experiment": first["experiment"],
        "variant": first["variant"],
        "configuration": configuration,
        "metrics": figures,
        "without": first["without"],
        "real": first["real"],
        **{key: first[key] for key in SAME},
        "commit": sorted({commit for run in runs for commit in run["commit"]}),
        "changed": "unknown" if "unknown" in changed else any(changed),
        "tracking": tracking,
        "runs": [{"seed": run["seed"], "models": run["models"], "training": run["training"]} for run in runs],
    }


def collect(metrics: list[Path], experiments: Path, results: Path) -> Measured:
    """The records of the given runs, and of the experiments that were evaluated earlier with the settings they have now.

    Writes results/<experiment>/<variant>/metrics.json for the given runs.

    Raises:
        UserError: a file is missing or damaged, or the seeds of a variant do not belong together.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for path in metrics:
        run = read_metrics(path)
        groups.setdefault((run["experiment"], run["variant"]), []).append(run)
    records: dict[str, dict[str, Record]] = {}
    for (experiment, variant), runs in groups.items():
        configuration = read_experiment(experiments / f"{experiment}.yaml").hash()
        record = over_seeds(runs, configuration, _tracked(results / experiment / "tracking.json"))
        write_json(results / experiment / variant / "metrics.json", record)
        records.setdefault(experiment, {})[variant] = record
    notes = []
    for path in sorted(results.glob("*/*/metrics.json")):
        experiment, variant = path.parts[-3:-1]
        if (experiment, variant) in groups:
            continue
        settings, earlier = experiments / f"{experiment}.yaml", read_metrics(path)
        where = "/".join(path.parts[-3:])
        if not settings.is_file():
            notes.append(f"{where} is left out: there is no {experiment}.yaml among the experiments any more.")
        elif earlier.get("configuration") != read_experiment(settings).hash():
            notes.append(f"{where} is left out: it was measured with other settings than {experiment}.yaml has now.")
        else:
            records.setdefault(experiment, {})[variant] = earlier
    return Measured(records, notes)


def _tracked(path: Path) -> str | None:
    """Id of an experiment's parent run in MLflow, if it was mirrored."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    found = content.get("run")
    return str(found) if found else None


def run(metrics: list[Path], paper: Path, experiments: Path, results: Path) -> None:
    """Write results/<experiment>/<variant>/metrics.json, then benchmarks.csv, .md, .json and report.html under `results`.

    Args:
        metrics: metrics.json of every run, one per experiment, variant and seed.
        paper: config/paper.yaml.
        experiments: folder of the experiment files.
        results: folder of the results.

    Raises:
        UserError: a file is missing or damaged, or the seeds of a variant do not belong together.
    """
    figures = read_paper(paper)
    measured = collect(metrics, experiments, results)
    frame = pd.DataFrame([line.cells() for line in lines(measured, figures, experiments)], columns=COLUMNS)
    frame["samples"] = frame["samples"].astype("Int64")
    csv = io.StringIO()
    frame.to_csv(csv, index=False, lineterminator="\n")
    texts = {
        "benchmarks.csv": csv.getvalue(),
        "benchmarks.md": markdown(measured, figures, experiments),
        "report.html": page(measured, figures, experiments, results),
    }
    for name, text in texts.items():
        with writing(results / name) as stream:
            stream.write(text.encode())
    numbers = {
        experiment: {variant: {metric: figure["value"] for metric, figure in record["metrics"].items()} for variant, record in variants.items()}
        for experiment, variants in measured.records.items()
    }
    write_json(results / "benchmarks.json", numbers)
