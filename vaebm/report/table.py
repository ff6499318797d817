"""The table: what was measured, and every row of the paper beside what answers it.

A figure of ours stands in the measured column only if a run measured it; what was not run says how to run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vaebm.config.yaml_files import read_experiment
from vaebm.records.metrics import (
    FLOOR,
    Record,
    arrowed,
    compared,
    family,
    number,
    ratio_name,
    uses_extractor,
    with_certainty,
    written,
)
from vaebm.report.paper import Paper, Row, Table

COLUMNS = [
    "table", "model", "experiment", "variant", "metric", "measured", "spread", "low", "high", "floor", "samples", "unit", "seeds", "paper", "mark",
    "extractor", "chain", "commit", "changed", "data", "configuration", "tracking", "note",
]  # fmt: skip


Commands = dict[tuple[str, str], str]
"""(experiment, variant) → what runs it (see `commands`)."""


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

    def cells(self) -> dict[str, Any]:
        """One value per column of `COLUMNS`; None where there is none."""
        cells: dict[str, Any] = dict.fromkeys(COLUMNS)
        cells.update(
            table=self.table,
            model=self.model,
            metric=self.metric,
            paper=self.paper,
            mark=self.mark or None,
            note=self.note.replace("`", "") or None,
        )
        if self.record is not None:
            figure, floor = self.record["metrics"][self.metric], self.record["metrics"].get(self.metric + FLOOR)
            low, high = figure["interval"] or (None, None)
            cells.update(
                experiment=self.record["experiment"],
                variant=self.record["variant"],
                measured=figure["value"],
                spread=figure["spread"],
                low=low,
                high=high,
                floor=floor and floor["value"],
                samples=figure["samples"],
                unit=figure.get("unit"),
                seeds=" ".join(map(str, figure["seeds"])),
                extractor=extractor_of(self.record, self.metric) if uses_extractor(self.metric) else None,
                chain=chain_of(self.record),
                commit=" ".join(self.record["commit"]),
                changed=str(self.record["changed"]).lower(),
                data=data_of(self.record),
                configuration=self.record["configuration"],
                tracking=self.record["tracking"],
            )
        return cells


def extractor_of(record: Record, metric: str = "") -> str:
    """The extractor that a metric was measured with, the distances' without one, and the version of what ran it, in words."""
    found = (family(metric) == "Modes" and record["modes_by"]) or record["extractor"]
    return f"{found['name']}, torch-fidelity {found['torch-fidelity']}"


def chain_of(record: Record) -> str:
    """The test chain in words, and that the images were stretched where they were."""
    chain = record["chain"]
    steps = (
        f"{chain['steps']} steps of {chain['step_size']:g}, potential {chain['potential']}"
        if chain["steps"]
        else "no chain"
    )
    return steps + ", each image stretched" * chain["stretch"]


def commands(paper: Paper, experiments: Path) -> Commands:
    """What runs each of the experiments that answer rows of the paper, in words, the command in backticks.

    Args:
        experiments: folder of the experiment files.

    Raises:
        UserError: one of them is no experiment.
    """
    answers = {row.answer for table in paper.tables for row in table.rows if row.answer is not None}
    found = {}
    for name in {answer.experiment for answer in answers}:
        path = experiments / f"{name}.yaml"
        settings = read_experiment(path) if path.is_file() else None
        for variant in {answer.variant for answer in answers if answer.experiment == name}:
            told = f"`snakemake --config 'experiments=[{name}]'`"
            if settings is None:
                told += f", but {name} is not in config/experiments yet"
            elif lacking := [*settings.missing, *([] if variant in settings.models else [f"a variant {variant}"])]:
                told += f", once it has {' and '.join(lacking)}"
            found[name, variant] = told
    return found


def how_to_run(row: Row, metric: str, measured: Measured, runs: Commands) -> str:
    """What fills the measured cell of one of the paper's rows; empty where it is filled."""
    if row.answer is None:
        return "not trained here"
    experiment, variant = row.answer.experiment, row.answer.variant
    record = measured.records.get(experiment, {}).get(variant)
    if record is None:
        return runs[experiment, variant]
    return "" if metric in record["metrics"] else f"{experiment}/{variant} was measured, without {metric}"


def answer_of(row: Row, metric: str, measured: Measured) -> Record | None:
    """The record of ours that measured `metric` for one of the paper's rows."""
    if row.answer is None:
        return None
    record = measured.records.get(row.answer.experiment, {}).get(row.answer.variant)
    return record if record is not None and metric in record["metrics"] else None


def lines(measured: Measured, paper: Paper, runs: Commands) -> list[Line]:
    """Every line: what was measured, experiment by experiment, then every row of the paper."""
    found = [
        Line(f"measured: {experiment}", variant, metric, record)
        for experiment, variants in measured.records.items()
        for variant, record in variants.items()
        for metric in record["metrics"]
        if not metric.endswith(FLOOR)
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
                note = "; ".join(filter(None, (row.note, how_to_run(row, metric, measured, runs))))
                found.append(
                    Line(
                        table.title,
                        row.model,
                        metric,
                        answer_of(row, metric, measured),
                        figure.value,
                        figure.mark,
                        note,
                    )
                )
    return found


def paper_figures(table: Table, row: Row, measured: Measured) -> list[tuple[str, str, str]]:
    """The paper's figure, its mark, and ours, for every metric of one of the paper's tables; empty where there is none."""
    found: list[tuple[str, str, str]] = []
    for metric in table.metrics:
        figure, record = row.figures.get(metric), answer_of(row, metric, measured)
        ours = with_certainty(metric, record["metrics"][metric]) if record and figure else ""
        found.append((f"{figure.value:g}" if figure else "", figure.mark if figure else "", ours))
    return found


def paper_cells(table: Table, row: Row, measured: Measured) -> list[str]:
    """A row of one of the paper's tables: model, (paper's figure with its mark, ours) for every metric."""
    return [
        row.model,
        *(
            cell
            for value, mark, ours in paper_figures(table, row, measured)
            for cell in (f"{value} ({mark})" if value else "", ours)
        ),
    ]


def paper_header(table: Table) -> list[str]:
    """The names of the columns of `paper_cells`."""
    pairs = [(f"{arrowed(metric)}, paper", f"{metric}, measured") for metric in table.metrics]
    return ["model", *(name for pair in pairs for name in pair)]


def remark_of(row: Row, measured: Measured, runs: Commands) -> str:
    """What has to be said about one of the paper's rows, and what fills its measured cells, commands in backticks."""
    hows = dict.fromkeys(how_to_run(row, metric, measured, runs) for metric in row.figures)
    answers = {
        metric: record["metrics"][metric] for metric in row.figures if (record := answer_of(row, metric, measured))
    }
    units = [f"{metric} measured in {figure['unit']}" for metric, figure in answers.items() if "unit" in figure]
    return "; ".join(filter(None, (row.note, *hows, *units)))


LEGEND = (
    "Measured: of several seeds the mean ± standard deviation over them, each seed's interval standing with its run; of one seed its value and "
    "[low, high], the 95 % interval over the images that were drawn: the samples; for recall the training images; for AUROC, AUPR (average precision, "
    "held-out images positive) and FPR95 (share of the set that passes where 95 % of the held-out images do) these and the set. "
    "Marks of the paper's figures: A seen in two independent sources or in the authors' "
    "repository, B in one source, M from memory, unverified. FID stands for the standard Inception features only; a distance in other features is named "
    "after them. An empty measured cell was not run."
)


def overview(variants: dict[str, Record], *, certain: bool = True) -> tuple[list[str], list[list[str]]]:
    """Header and rows of an experiment's figures: a metric a row, a variant a column, then ratio, floor and number of images.

    The ratio of the first variant to the NVAE has a column where it means something, what a perfect sampler would give where it is known.

    Args:
        certain: whether the figures stand with their spread or interval.
    """
    shown = [row for _, rows in compared(variants) for row in rows]
    ratio, floors = ratio_name(variants), any(row.floor for row in shown)
    rows = []
    for row in shown:
        told = with_certainty if certain else lambda metric, figure: written(metric, figure["value"])
        cells = [told(row.metric, figure) if figure else "" for figure in row.figures]
        rows.append(
            [
                arrowed(row.metric),
                *cells,
                *([row.ratio] if ratio else []),
                *([row.floor] if floors else []),
                row.samples,
            ]
        )
    return ["metric", *variants, *([ratio] if ratio else []), *(["perfect sampler"] if floors else []), "images"], rows


ORIGIN_HEADER = ["variant", "seeds", "chain", "extractor", "commit", "data", "configuration", "MLflow run"]


def data_of(record: Record, digits: int = 64) -> str:
    """The hash of its data, cut to `digits`, and that the files are the user's where they are of no published set."""
    return ("user's files " if record["users"] else "") + str(record["data"][:digits])


def origin_cells(record: Record) -> list[str]:
    """Where a variant's figures come from, long hashes cut to twelve digits; the names of the columns are `ORIGIN_HEADER`."""
    seeds = ", ".join(str(run["seed"]) for run in record["runs"])
    changed = {True: " + changes", "unknown": ""}.get(record["changed"], "")
    commit = " ".join(name[:12] for name in record["commit"]) + changed
    origin = [
        chain_of(record),
        extractor_of(record),
        commit,
        data_of(record, 12),
        record["configuration"][:12],
        record["tracking"] or "",
    ]
    return [record["variant"], seeds, *origin]


def remarks(variants: dict[str, Record]) -> list[str]:
    """What has to be said about an experiment's figures, a paragraph each."""
    return [_real_images(next(iter(variants.values()))), *_units(variants), *_without(variants)]


def _real_images(record: Record) -> str:
    """What real images score, in a sentence."""
    scores = [
        f"{metric} {number(figure['value'])} ({figure['samples']} images)" for metric, figure in record["real"].items()
    ]
    return f"Real images, held out, score {', '.join(scores)}."


def _units(variants: dict[str, Record]) -> list[str]:
    """The units of the figures that have one, a line for each unit."""
    units: dict[str, dict[str, None]] = {}
    for record in variants.values():
        for metric, figure in record["metrics"].items():
            if unit := figure.get("unit"):
                units.setdefault(unit, {})[metric] = None
    return [f"In {unit}: {', '.join(metrics)}." for unit, metrics in units.items()]


def _without(variants: dict[str, Record]) -> list[str]:
    """Why figures of an experiment's variants are empty, a line for each reason."""
    reasons = dict.fromkeys(
        (variant, reason) for variant, record in variants.items() for reason in record["without"].values()
    )
    return [
        f"{variant} has no {', '.join(metric for metric, why in variants[variant]['without'].items() if why == reason)}: {reason}."
        for variant, reason in reasons
    ]


def snapshots(record: Record) -> list[str]:
    """Which snapshot a variant's energy is, by which rule, and what the last one had, a line for each seed."""
    told = []
    for run in record["runs"]:
        selection = run["training"].get("ebm", {}).get("selection")
        if selection is None:
            continue
        chosen, last = (selection["candidates"][str(selection[which])] for which in ("chosen", "last"))
        beside = (
            "the last one"
            if selection["chosen"] == selection["last"]
            else f"the last one, {selection['last']}, has {_distance(last)}"
        )
        where = f"{record['variant']}, seed {run['seed']}"
        told.append(
            f"{where}: the snapshot of iteration {selection['chosen']}, {_distance(chosen)}, {beside}. Rule: {selection['rule']}."
        )
    return told


def _distance(value: float | None) -> str:
    return "no distance (images that are not finite)" if value is None else f"distance {number(value)}"


def grid(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table, its columns padded to be read as text too; the last column, which may hold remarks, is not."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header) - 1)]
    return [
        f"| {' | '.join([*(cell.ljust(width) for cell, width in zip(cells[:-1], widths, strict=True)), cells[-1]])} |"
        for cells in (header, [*("-" * max(width, 3) for width in widths), "---"], *rows)
    ]


def markdown(measured: Measured, paper: Paper, runs: Commands) -> str:
    """The table as Markdown: what was measured, then the paper's tables."""
    text = ["# Results", "", LEGEND, ""]
    for experiment, variants in measured.records.items():
        chosen = [line for record in variants.values() for line in snapshots(record)]
        text += [f"## Measured: {experiment}", "", *grid(*overview(variants)), ""]
        text += [line for told in (*remarks(variants), *chosen) for line in (told, "")]
        origin = [origin_cells(record) for record in variants.values()]
        text += ["Where each of these figures comes from:", "", *grid(ORIGIN_HEADER, origin), ""]
    text += [line for note in measured.notes for line in (note, "")]
    for one in paper.tables:
        text += [f"## {one.title}", "", *([one.note, ""] if one.note else [])]
        rows = [[*paper_cells(one, row, measured), remark_of(row, measured, runs)] for row in one.rows]
        text += [*grid([*paper_header(one), "to measure it"], rows), ""]
    return "\n".join(text)
