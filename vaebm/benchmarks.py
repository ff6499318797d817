"""Stage `benchmarks`: our figures over the seeds, beside the paper's, as csv, Markdown, json and a page.

A figure of ours stands in the measured column only if a run measured it; what was not run says how to run it.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from vaebm.checkpoint import write_json, writing
from vaebm.config import VARIANTS, UserError, read_experiment
from vaebm.paper import Paper, Row, Table, read_paper

COLUMNS = [
    "table", "model", "experiment", "variant", "metric", "measured", "spread", "samples", "seeds", "paper", "mark", "extractor",
    "chain", "commit", "changed", "data", "configuration", "tracking", "note",
]  # fmt: skip

SAME = ("data", "extractor", "chain", "versions")
"""What the seeds of a variant must share for a mean over them to mean something."""

Record = dict[str, Any]


class Measured(NamedTuple):
    """What there is to show."""

    records: dict[str, dict[str, Record]]
    """Experiment → variant → its record over the seeds."""
    notes: list[str]
    """What was left out, and why."""


@dataclass(frozen=True)
class Line:
    """One line of the table, one metric of one model; the names of the fields that are not here are empty."""

    table: str
    model: str
    metric: str
    record: Record | None = None
    paper: float | None = None
    mark: str = ""
    note: str = ""

    def cells(self) -> Record:
        """One value per column of `COLUMNS`; None where there is none."""
        cells: Record = dict.fromkeys(COLUMNS)
        cells.update(table=self.table, model=self.model, metric=self.metric, paper=self.paper, mark=self.mark or None, note=self.note or None)
        if self.record is not None:
            figure = self.record["metrics"][self.metric]
            cells.update(
                experiment=self.record["experiment"],
                variant=self.record["variant"],
                measured=figure["value"],
                spread=figure["spread"],
                samples=figure["samples"],
                seeds=" ".join(map(str, figure["seeds"])),
                extractor=extractor_of(self.record) if self.metric.endswith(("classifier", "classifier-heldout")) else None,
                chain=chain_of(self.record),
                commit=" ".join(self.record["commit"]),
                changed=str(self.record["changed"]).lower(),
                data=self.record["data"],
                configuration=self.record["configuration"],
                tracking=self.record["tracking"],
            )
        return cells


def extractor_of(record: Record) -> str:
    """The extractor and the version of what computed its distances, in words."""
    return f"{record['extractor']['name']}, torch-fidelity {record['extractor']['torch-fidelity']}"


def chain_of(record: Record) -> str:
    """The test chain in words."""
    chain = record["chain"]
    return f"{chain['steps']} steps of {chain['step_size']:g}, potential {chain['potential']}" if chain["steps"] else "no chain"


def is_lower_better(metric: str) -> bool:
    """Whether a metric counts distance."""
    return metric.startswith(("FD", "FID", "KID", "KL", "seconds"))


# ------------------------------------------------------------------------------------------------------ over the seeds
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
        "real": first["real"],
        **{key: first[key] for key in SAME},
        "commit": sorted({run["commit"] for run in runs}),
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


# ----------------------------------------------------------------------------------------------------------- the table
def how_to_run(row: Row, metric: str, measured: Measured, experiments: Path) -> str:
    """What to do for the measured cell of one of the paper's rows; empty where it is filled."""
    if row.answer is None:
        return "a model of others, not trained here"
    experiment, variant = row.answer.experiment, row.answer.variant
    record = measured.records.get(experiment, {}).get(variant)
    if record is not None:
        return "" if metric in record["metrics"] else f"{experiment}/{variant} was measured, without {metric}"
    if not (experiments / f"{experiment}.yaml").is_file():
        return f"{experiment} is not in config/experiments yet"
    if variant not in VARIANTS:
        return f"there is no variant {variant} yet"
    return f"snakemake --config 'experiments=[{experiment}]'"


def answer_of(row: Row, metric: str, measured: Measured) -> Record | None:
    """The record of ours that measured `metric` for one of the paper's rows."""
    if row.answer is None:
        return None
    record = measured.records.get(row.answer.experiment, {}).get(row.answer.variant)
    return record if record is not None and metric in record["metrics"] else None


def lines(measured: Measured, paper: Paper, experiments: Path) -> list[Line]:
    """Every line: what was measured, experiment by experiment, then every row of the paper."""
    found = [
        Line(f"measured: {experiment}", variant, metric, record)
        for experiment, variants in measured.records.items()
        for variant, record in variants.items()
        for metric in record["metrics"]
    ]
    for table in paper.tables:
        for row in table.rows:
            for metric, figure in row.figures.items():
                note = "; ".join(filter(None, (row.note, how_to_run(row, metric, measured, experiments))))
                found.append(Line(table.title, row.model, metric, answer_of(row, metric, measured), figure.value, figure.mark, note))
    return found


def number(value: float | None) -> str:
    """A figure to four digits, without an exponent where it can be read without one."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 3 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(digits, 0), 5)}f}" if digits <= 6 else f"{value:.2e}"


def with_spread(figure: Record) -> str:
    """"value ± spread", the spread left out for one seed."""
    return number(figure["value"]) + (f" ± {number(figure['spread'])}" if figure["spread"] is not None else "")


def paper_cells(table: Table, row: Row, measured: Measured, experiments: Path) -> list[str]:
    """A row of one of the paper's tables: model, (paper's figure with its mark, ours) for every metric, how to measure it."""
    cells = [row.model]
    for metric in table.metrics:
        figure, record = row.figures.get(metric), answer_of(row, metric, measured)
        cells += [f"{figure.value:g} ({figure.mark})" if figure else "", with_spread(record["metrics"][metric]) if record and figure else ""]
    hows = dict.fromkeys(how_to_run(row, metric, measured, experiments) for metric in row.figures)
    return [*cells, "; ".join(filter(None, (row.note, *hows)))]


def paper_header(table: Table) -> list[str]:
    """The names of the columns of `paper_cells`."""
    pairs = [(f"{metric} {'↓' if is_lower_better(metric) else '↑'}, paper", f"{metric}, measured") for metric in table.metrics]
    return ["model", *(name for pair in pairs for name in pair), "to measure it"]


def measured_cells(record: Record) -> list[list[str]]:
    """The rows of one variant: metric, value ± spread, samples, and where they come from."""
    rows = []
    for metric, figure in record["metrics"].items():
        cells = Line("", "", metric, record).cells()
        commit = " ".join(name[:12] for name in record["commit"]) + {"true": " + changes", "unknown": ""}.get(cells["changed"], "")
        origin = [cells["extractor"] or "", cells["chain"], commit, record["data"][:12], record["configuration"][:12], record["tracking"] or ""]
        arrow = "↓" if is_lower_better(metric) else "↑"
        rows.append([record["variant"], f"{metric} {arrow}", with_spread(figure), str(figure["samples"]), cells["seeds"], *origin])
    return rows


MEASURED_HEADER = [
    "variant", "metric", "measured", "samples", "seeds", "extractor", "chain", "commit", "data", "configuration", "MLflow run",
]  # fmt: skip

LEGEND = (
    "Measured: mean over the seeds ± standard deviation over them. Marks of the paper's figures: A seen in two independent sources or in the authors' "
    "repository, B in one source, M from memory, unverified. FID stands for the standard Inception features only; a distance in other features is named "
    "after them. An empty measured cell was not run."
)


def markdown(measured: Measured, paper: Paper, experiments: Path) -> str:
    """The table as Markdown: what was measured, then the paper's tables."""

    def table(header: list[str], rows: list[list[str]]) -> list[str]:
        return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]

    text = ["# Results", "", LEGEND, ""]
    for experiment, variants in measured.records.items():
        text += [f"## Measured: {experiment}", "", *table(MEASURED_HEADER, [cells for record in variants.values() for cells in measured_cells(record)]), ""]
        text += [real_images(next(iter(variants.values()))), ""]
    text += [line for note in measured.notes for line in (note, "")]
    for one in paper.tables:
        text += [f"## {one.title}", "", *([one.note, ""] if one.note else [])]
        text += [*table(paper_header(one), [paper_cells(one, row, measured, experiments) for row in one.rows]), ""]
    return "\n".join(text)


def real_images(record: Record) -> str:
    """What real images score, in a sentence."""
    scores = [f"{metric} {number(figure['value'])} ({figure['samples']} images)" for metric, figure in record["real"].items()]
    return f"Real images, held out, score {', '.join(scores)}."


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
    from vaebm.report import page

    figures = read_paper(paper)
    measured = collect(metrics, experiments, results)
    frame = pd.DataFrame([line.cells() for line in lines(measured, figures, experiments)], columns=COLUMNS)
    frame["samples"] = frame["samples"].astype("Int64")
    csv = io.StringIO()
    frame.to_csv(csv, index=False, lineterminator="\n")
    texts: dict[str, Callable[[], str]] = {
        "benchmarks.csv": csv.getvalue,
        "benchmarks.md": lambda: markdown(measured, figures, experiments),
        "report.html": lambda: page(measured, figures, experiments, results),
    }
    for name, text in texts.items():
        with writing(results / name) as stream:
            stream.write(text().encode())
    numbers = {
        experiment: {variant: {metric: figure["value"] for metric, figure in record["metrics"].items()} for variant, record in variants.items()}
        for experiment, variants in measured.records.items()
    }
    write_json(results / "benchmarks.json", numbers)
