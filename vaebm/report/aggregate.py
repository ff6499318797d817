"""Stage `benchmarks`: metrics over the seeds and the paper's values, as csv, Markdown, LaTeX, json and HTML."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from vaebm.config.yaml_files import read_experiment
from vaebm.records.metrics import Record
from vaebm.report.html import page
from vaebm.report.latex import latex
from vaebm.report.paper import read_paper
from vaebm.report.table import TABLE_COLUMNS, Measured, commands, lines, results_markdown
from vaebm.system.errors import UserError
from vaebm.system.files import write_json, writing
from vaebm.system.provenance import merged

SAME = ("data", "users", "extractor", "modes_by", "chain", "versions")
"""Keys in which the seeds of a variant must agree."""

RUN_KEYS = {
    "experiment",
    "variant",
    "seed",
    "metrics",
    "without",
    "real",
    "commit",
    "changed",
    "models",
    "training",
    *SAME,
}
"""Keys of a run's metrics.json."""
RECORDS = "*/*/metrics.json"
"""Pattern of the records over the seeds: <experiment>/<variant>/metrics.json."""


def read_metrics(path: Path) -> Record:
    """Read the metrics.json of one run.

    Raises:
        UserError: the file is missing or damaged, or a version of the program wrote it that measured other things.
    """
    content = _read(path)
    if lacking := sorted(RUN_KEYS - content.keys()):
        raise UserError(
            f"{path}: expected the figures of a run, found none of its {', '.join(lacking)}: "
            "remove the file and run again"
        )
    return content


def _read(path: Path) -> Record:
    """Read a JSON object with metrics, of one run or over the seeds."""
    try:
        content: Record = json.loads(path.read_text())
        if not isinstance(content["metrics"], dict):
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"{path}: expected the figures of a run, found no file; `vaebm evaluation` makes it") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: expected the figures of a run, found a damaged file or one of another kind; "
            "remove it and run again"
        ) from None
    return content


def _is_whole(record: Record) -> bool:
    """True if a record over the seeds has all current keys; earlier versions wrote fewer."""
    keys = RUN_KEYS - {"seed", "models", "training"} | {"runs", "tracking"}
    of_seed = {"seed", "models", "training", "steps"}
    by_seed = all("by_seed" in figure for figure in record["metrics"].values())
    return by_seed and keys <= record.keys() and all(of_seed <= run.keys() for run in record["runs"])


def over_seeds(runs: list[Record], configuration: str, tracking: str | None) -> Record:
    """Combine the runs of a variant: mean of every metric, and standard deviation over the seeds.

    For several seeds each seed keeps its interval under `by_seed`, and the record has none: the seeds differ in
    training, which intervals over images do not cover.

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
        differing = [key for key in SAME if run[key] != first[key]]
        if differing or run["metrics"].keys() != first["metrics"].keys():
            raise UserError(
                f"{name}: expected the same {[*differing, 'metrics'][0]} for all seeds, "
                f"found others for seed {run['seed']} than for {seeds[0]}; run it again"
            )
    figures: dict[str, Record] = {}
    several = len(runs) > 1
    for metric in first["metrics"]:
        found = [run["metrics"][metric] for run in runs]
        values = [figure["value"] for figure in found]
        by_seed = [
            {"seed": seed, "value": one["value"], "interval": one.get("interval")}
            for seed, one in zip(seeds, found, strict=True)
        ]
        figures[metric] = {
            "value": float(np.mean(values)),
            "spread": float(np.std(values, ddof=1)) if several else None,
            "interval": None if several else found[0].get("interval"),
            "samples": found[0]["samples"],
            "seeds": seeds,
            "by_seed": by_seed,
        }
        if "unit" in found[0]:
            figures[metric]["unit"] = " and ".join(dict.fromkeys(figure["unit"] for figure in found))
    return {
        **{key: first[key] for key in ("experiment", "variant")},
        "configuration": configuration,
        "metrics": figures,
        **{key: first[key] for key in ("without", "real", *SAME)},
        **merged(runs),
        "tracking": tracking,
        "runs": [{key: run.get(key) for key in ("seed", "models", "training", "steps", "ood")} for run in runs],
    }


def collect_records(metrics: list[Path], experiments: Path, results: Path) -> Measured:
    """Collect the records of the given runs, and of experiments evaluated earlier with their current settings.

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
                f"{where} is left out: another version of the program wrote it; "
                f"`snakemake --config 'experiments=[{experiment}]'` makes it anew."
            )
        elif not settings.is_file():
            notes.append(f"{where} is left out: there is no {experiment}.yaml among the experiments any more.")
        elif earlier.get("configuration") != read_experiment(settings).hash():
            notes.append(f"{where} is left out: it was measured with other settings than {experiment}.yaml has now.")
        else:
            records.setdefault(experiment, {})[variant] = earlier
    ordered = {name: _in_order(variants, experiments / f"{name}.yaml") for name, variants in records.items()}
    return Measured(ordered, notes)


def _in_order(variants: dict[str, Record], settings: Path) -> dict[str, Record]:
    """Sort the records in the order of the experiment file, the NVAE first."""
    order = dict.fromkeys([*read_experiment(settings).models, *variants])
    return {variant: variants[variant] for variant in order if variant in variants}


def _tracked(path: Path) -> str | None:
    """Id of an experiment's parent run in MLflow, if there is one."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    found = content.get("run")
    return str(found) if found else None


def run(metrics: list[Path], paper: Path, experiments: Path, results: Path) -> None:
    """Write results/<experiment>/<variant>/metrics.json, and benchmarks.csv, .md, .tex, .json and report.html.

    Args:
        metrics: metrics.json of each run; none: use the earlier records.
        paper: config/paper.yaml.
        experiments: folder of the experiment files.
        results: folder of the results, and of the outputs.

    Raises:
        UserError: a file is missing or damaged, the seeds of a variant do not agree, or nothing was measured.
    """
    figures = read_paper(paper)
    measured = collect_records(metrics, experiments, results)
    if not measured.records:
        found = " ".join(measured.notes) or f"no {RECORDS}"
        raise UserError(
            f"{results}: expected the figures of at least one experiment, found none ({found}); "
            "`snakemake` measures them"
        )
    runs = commands(figures, experiments)
    frame = pd.DataFrame([line.cells() for line in lines(measured, figures, runs)], columns=TABLE_COLUMNS)
    frame["samples"] = frame["samples"].astype("Int64")
    texts = {
        "benchmarks.csv": frame.to_csv(index=False, lineterminator="\n"),
        "benchmarks.md": results_markdown(measured, figures, runs),
        "benchmarks.tex": latex(measured, figures),
        "report.html": page(measured, figures, runs, results),
    }
    for name, text in texts.items():
        with writing(results / name) as stream:
            stream.write(text.encode())
    numbers: dict[str, dict[str, dict[str, float]]] = {}
    for experiment, variants in measured.records.items():
        for variant, record in variants.items():
            values = {metric: figure["value"] for metric, figure in record["metrics"].items()}
            numbers.setdefault(experiment, {})[variant] = values
    write_json(results / "benchmarks.json", numbers)
