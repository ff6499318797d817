"""Stage `benchmarks`: our figures over the seeds, beside the paper's, as csv, Markdown, LaTeX, json and a page."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd

from vaebm.config.yaml_files import read_experiment
from vaebm.records.metrics import Record
from vaebm.report.html import page
from vaebm.report.latex import latex
from vaebm.report.paper import read_paper
from vaebm.report.table import COLUMNS, Measured, commands, lines, markdown
from vaebm.system.errors import UserError
from vaebm.system.files import write_json, writing
from vaebm.system.provenance import merged

SAME = ("data", "users", "extractor", "modes_by", "chain", "versions")
"""What the seeds of a variant must share for a mean over them to mean something."""

RUN = {"experiment", "variant", "seed", "metrics", "without", "real", "commit", "changed", "models", "training", *SAME}
"""What a metrics.json of one run holds."""
RECORDS = "*/*/metrics.json"
"""The records over the seeds under a folder of results, <experiment>/<variant>/."""


def read_metrics(path: Path) -> Record:
    """The metrics.json of one run.

    Raises:
        UserError: the file is missing or damaged, or a version of the program wrote it that measured other things.
    """
    content = _read(path)
    if lacking := sorted(RUN - content.keys()):
        raise UserError(
            f"{path}: expected the figures of a run, found none of its {', '.join(lacking)}: remove the file and run again"
        )
    return content


def _read(path: Path) -> Record:
    """An object with metrics, of one run or over the seeds."""
    try:
        content: Record = json.loads(path.read_text())
        if not isinstance(content["metrics"], dict):
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"{path}: expected the figures of a run, found no file; `vaebm evaluation` makes it") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: expected the figures of a run, found a damaged file or one of another kind; remove it and run again"
        ) from None
    return content


def _is_whole(record: Record) -> bool:
    """Whether a record over the seeds has all that `over_seeds` gives it now; other versions of the program gave it less."""
    keys = RUN - {"seed", "models", "training"} | {"runs", "tracking"}
    by_seed = all("by_seed" in figure for figure in record["metrics"].values())
    return (
        by_seed
        and keys <= record.keys()
        and all({"seed", "models", "training", "steps"} <= run.keys() for run in record["runs"])
    )


def over_seeds(runs: list[Record], configuration: str, tracking: str | None) -> Record:
    """One record of the runs of a variant: the mean of every figure and its spread, the standard deviation over the seeds.

    An interval says how far one seed's figure may be off for the images that were drawn. Of several seeds it stands with each of
    them, under `by_seed`, and the record as a whole has none: a mean of bounds is no bound, and what differs between seeds
    is the training, which no resampling of images knows of.

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
        differing = [key for key in SAME if run[key] != first[key]] + (
            ["metrics"] if run["metrics"].keys() != first["metrics"].keys() else []
        )
        if differing:
            raise UserError(
                f"{name}: expected the same {differing[0]} for all seeds, found others for seed {run['seed']} than for {seeds[0]}; run it again"
            )
    figures = {}
    for metric in first["metrics"]:
        found = [run["metrics"][metric] for run in runs]
        values, several = [figure["value"] for figure in found], len(runs) > 1
        figures[metric] = {
            "value": float(np.mean(values)),
            "spread": float(np.std(values, ddof=1)) if several else None,
            "interval": None if several else found[0].get("interval"),
            "samples": found[0]["samples"],
            "seeds": seeds,
            "by_seed": [
                {"seed": seed, "value": one["value"], "interval": one.get("interval")}
                for seed, one in zip(seeds, found, strict=True)
            ],
            **({"unit": " and ".join(dict.fromkeys(figure["unit"] for figure in found))} if "unit" in found[0] else {}),
        }
    return {
        "experiment": first["experiment"],
        "variant": first["variant"],
        "configuration": configuration,
        "metrics": figures,
        "without": first["without"],
        "real": first["real"],
        **{key: first[key] for key in SAME},
        **merged(runs),
        "tracking": tracking,
        "runs": [
            {
                "seed": run["seed"],
                "models": run["models"],
                "training": run["training"],
                "steps": run.get("steps"),
                "ood": run.get("ood"),
            }
            for run in runs
        ],
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
    for path in sorted(results.glob(RECORDS)):
        experiment, variant = path.parts[-3:-1]
        if (experiment, variant) in groups:
            continue
        settings, earlier = experiments / f"{experiment}.yaml", _read(path)
        where = "/".join(path.parts[-3:])
        if not _is_whole(earlier):
            notes.append(
                f"{where} is left out: another version of the program wrote it; `snakemake --config 'experiments=[{experiment}]'` makes it anew."
            )
        elif not settings.is_file():
            notes.append(f"{where} is left out: there is no {experiment}.yaml among the experiments any more.")
        elif earlier.get("configuration") != read_experiment(settings).hash():
            notes.append(f"{where} is left out: it was measured with other settings than {experiment}.yaml has now.")
        else:
            records.setdefault(experiment, {})[variant] = earlier
    return Measured(
        {
            experiment: _in_order(variants, experiments / f"{experiment}.yaml")
            for experiment, variants in records.items()
        },
        notes,
    )


def _in_order(variants: dict[str, Record], settings: Path) -> dict[str, Record]:
    """The records in the order of the experiment file, whether they were measured now or earlier; the NVAE alone is first."""
    order = dict.fromkeys([*read_experiment(settings).models, *variants])
    return {variant: variants[variant] for variant in order if variant in variants}


def _tracked(path: Path) -> str | None:
    """Id of an experiment's parent run in MLflow, if it was mirrored."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    found = content.get("run")
    return str(found) if found else None


def run(metrics: list[Path], paper: Path, experiments: Path, results: Path) -> None:
    """Write results/<experiment>/<variant>/metrics.json, then benchmarks.csv, .md, .tex, .json and report.html under `results`.

    Args:
        metrics: metrics.json of every run, one per experiment, variant and seed; none: what was gathered earlier is written again.
        paper: config/paper.yaml.
        experiments: folder of the experiment files.
        results: folder of the results.

    Raises:
        UserError: a file is missing or damaged, the seeds of a variant do not belong together, or nothing was measured.
    """
    figures = read_paper(paper)
    measured = collect(metrics, experiments, results)
    if not measured.records:
        found = " ".join(measured.notes) or f"no {RECORDS}"
        raise UserError(
            f"{results}: expected the figures of at least one experiment, found none ({found}); `snakemake` measures them"
        )
    runs = commands(figures, experiments)
    frame = pd.DataFrame([line.cells() for line in lines(measured, figures, runs)], columns=COLUMNS)
    frame["samples"] = frame["samples"].astype("Int64")
    csv = io.StringIO()
    frame.to_csv(csv, index=False, lineterminator="\n")
    texts = {
        "benchmarks.csv": csv.getvalue(),
        "benchmarks.md": markdown(measured, figures, runs),
        "benchmarks.tex": latex(measured, figures),
        "report.html": page(measured, figures, runs, results),
    }
    for name, text in texts.items():
        with writing(results / name) as stream:
            stream.write(text.encode())
    numbers = {
        experiment: {
            variant: {metric: figure["value"] for metric, figure in record["metrics"].items()}
            for variant, record in variants.items()
        }
        for experiment, variants in measured.records.items()
    }
    write_json(results / "benchmarks.json", numbers)
