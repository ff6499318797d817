"""The table: what was measured, and every row of the paper beside what answers it.

A figure of ours stands in the measured column only if a run measured it; what was not run says how to run it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vaebm.paper import Paper, Row, Table
from vaebm.settings import read_experiment

COLUMNS = [
    "table", "model", "experiment", "variant", "metric", "measured", "spread", "samples", "seeds", "paper", "mark", "extractor",
    "chain", "commit", "changed", "data", "configuration", "tracking", "note",
]  # fmt: skip

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
        cells.update(table=self.table, model=self.model, metric=self.metric, paper=self.paper, mark=self.mark or None, note=self.note.replace("`", "") or None)
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


def arrowed(metric: str) -> str:
    """A metric's name with the direction that is better."""
    return f"{metric} ↓" if metric.startswith(("FD", "FID", "KID", "KL", "seconds")) else f"{metric} ↑"


def how_to_run(row: Row, metric: str, measured: Measured, experiments: Path) -> str:
    """What fills the measured cell of one of the paper's rows, a command in backticks; empty where it is filled."""
    if row.answer is None:
        return "a model of others, not trained here"
    experiment, variant = row.answer.experiment, row.answer.variant
    record = measured.records.get(experiment, {}).get(variant)
    if record is not None:
        return "" if metric in record["metrics"] else f"{experiment}/{variant} was measured, without {metric}"
    command = f"`snakemake --config 'experiments=[{experiment}]'`"
    if not (experiments / f"{experiment}.yaml").is_file():
        return f"{command}, but {experiment} is not in config/experiments yet"
    settings = read_experiment(experiments / f"{experiment}.yaml")
    if settings.missing:
        return f"{command}, once it has {' and '.join(settings.missing)}"
    return command if variant in settings.models else f"{command}, but there is no variant {variant} yet"


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
    found += [
        Line(f"measured: {experiment}", variant, metric, note=reason)
        for experiment, variants in measured.records.items()
        for variant, record in variants.items()
        for metric, reason in record["without"].items()
    ]
    for table in paper.tables:
        for row in table.rows:
            for metric, figure in row.figures.items():
                note = "; ".join(filter(None, (row.note, how_to_run(row, metric, measured, experiments))))
                found.append(Line(table.title, row.model, metric, answer_of(row, metric, measured), figure.value, figure.mark, note))
    return found


def number(value: float, digits: int = 4) -> str:
    """A figure to `digits` digits, without an exponent where it can be read without one."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{decimals}f}" if decimals <= 6 else f"{value:.{digits - 1}e}"


def with_spread(figure: Record) -> str:
    """A figure as `value ± spread`, the spread left out for one seed."""
    return number(figure["value"]) + (f" ± {number(figure['spread'], 2)}" if figure["spread"] is not None else "")


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
    pairs = [(f"{arrowed(metric)}, paper", f"{metric}, measured") for metric in table.metrics]
    return ["model", *(name for pair in pairs for name in pair), "to measure it"]


def measured_cells(record: Record) -> list[list[str]]:
    """The rows of one variant: metric, value ± spread, samples, and where they come from."""
    rows = []
    for metric, figure in record["metrics"].items():
        cells = Line("", "", metric, record).cells()
        commit = " ".join(name[:12] for name in record["commit"]) + {"true": " + changes", "unknown": ""}.get(cells["changed"], "")
        origin = [cells["extractor"] or "", cells["chain"], commit, record["data"][:12], record["configuration"][:12], record["tracking"] or ""]
        rows.append([record["variant"], arrowed(metric), with_spread(figure), str(figure["samples"]), cells["seeds"], *origin])
    return rows


MEASURED_HEADER = [
    "variant", "metric", "measured", "samples", "seeds", "extractor", "chain", "commit", "data", "configuration", "MLflow run",
]  # fmt: skip

LEGEND = (
    "Measured: mean over the seeds ± standard deviation over them. Marks of the paper's figures: A seen in two independent sources or in the authors' "
    "repository, B in one source, M from memory, unverified. FID stands for the standard Inception features only; a distance in other features is named "
    "after them. An empty measured cell was not run."
)


def overview(variants: dict[str, Record]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of an experiment's figures, a metric a row, a variant a column."""
    metrics = list(dict.fromkeys(metric for record in variants.values() for metric in record["metrics"]))
    rows = []
    for metric in metrics:
        figures = [record["metrics"].get(metric) for record in variants.values()]
        samples = sorted({figure["samples"] for figure in figures if figure})
        rows.append([arrowed(metric), *(with_spread(figure) if figure else "" for figure in figures), ", ".join(f"{count:,}" for count in samples)])
    return ["metric", *variants, "images"], rows


def without(variants: dict[str, Record]) -> list[str]:
    """Why figures of an experiment's variants are empty, a line for each reason."""
    reasons = dict.fromkeys((variant, reason) for variant, record in variants.items() for reason in record["without"].values())
    return [
        f"{variant} has no {', '.join(metric for metric, why in variants[variant]['without'].items() if why == reason)}: {reason}."
        for variant, reason in reasons
    ]


def snapshots(variants: dict[str, Record]) -> list[str]:
    """Which snapshot each variant's energy is, by which rule, and what the last one had, a line for each seed."""
    told = []
    for variant, record in variants.items():
        for run in record["runs"]:
            selection = run["training"].get("ebm", {}).get("selection")
            if selection is None:
                continue
            chosen, last = (selection["candidates"][str(selection[which])] for which in ("chosen", "last"))
            beside = "the last one" if selection["chosen"] == selection["last"] else f"the last one, {selection['last']}, has {_distance(last)}"
            told.append(
                f"{variant}, seed {run['seed']}: the snapshot of iteration {selection['chosen']}, {_distance(chosen)}, {beside}. Rule: {selection['rule']}."
            )
    return told


def _distance(value: float | None) -> str:
    return "no distance (images that are not finite)" if value is None else f"distance {number(value)}"


def markdown(measured: Measured, paper: Paper, experiments: Path) -> str:
    """The table as Markdown: what was measured, then the paper's tables."""

    def table(header: list[str], rows: list[list[str]]) -> list[str]:
        return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]

    text = ["# Results", "", LEGEND, ""]
    for experiment, variants in measured.records.items():
        text += [f"## Measured: {experiment}", "", *table(*overview(variants)), "", real_images(next(iter(variants.values()))), ""]
        text += [line for told in (*without(variants), *snapshots(variants)) for line in (told, "")]
        origin = [cells for record in variants.values() for cells in measured_cells(record)]
        text += ["Where each of these figures comes from:", "", *table(MEASURED_HEADER, origin), ""]
    text += [line for note in measured.notes for line in (note, "")]
    for one in paper.tables:
        text += [f"## {one.title}", "", *([one.note, ""] if one.note else [])]
        text += [*table(paper_header(one), [paper_cells(one, row, measured, experiments) for row in one.rows]), ""]
    return "\n".join(text)


def real_images(record: Record) -> str:
    """What real images score, in a sentence."""
    scores = [f"{metric} {number(figure['value'])} ({figure['samples']} images)" for metric, figure in record["real"].items()]
    return f"Real images, held out, score {', '.join(scores)}."
