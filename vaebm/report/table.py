"""The results table: all measurements, and the paper's rows with our counterparts.

The measured column contains only values of runs; rows that were not run name the command.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from vaebm.config.yaml_files import read_experiment
from vaebm.records.metrics import format_value, metric, number, with_direction
from vaebm.records.results import VariantRecord
from vaebm.records.templates import render
from vaebm.report.cost import curves
from vaebm.report.paper import Paper, PaperRow, Table
from vaebm.report.rows import comparison_rows, ratio_name, with_certainty

TABLE_COLUMNS = [
    "table", "model", "experiment", "variant", "metric", "measured", "spread", "low", "high", "floor", "samples",
    "unit", "seeds", "paper", "mark", "extractor", "chain", "gradients", "seconds", "commit", "changed", "data",
    "configuration", "tracking", "note",
]  # fmt: skip

Cells = tuple[list[str], list[list[str]]]
"""Header and rows of a table."""

Commands = dict[tuple[str, str], str]
"""(experiment, variant) → its command, in words."""


class Measured(NamedTuple):
    """The records to show, and remarks."""

    records: dict[str, dict[str, VariantRecord]]
    """Experiment → variant → its record over the seeds."""
    notes: list[str]
    """Records left out, and why."""


def _line(
    table: str, model: str, name: str, record: VariantRecord | None = None, note: str = "", **paper: Any
) -> dict[str, Any]:
    """One line of the table, one metric of one model: column of `TABLE_COLUMNS` → value; others are empty.

    Without our value if `record` has none.
    """
    line = {"table": table, "model": model, "metric": name, "note": note.replace("`", "") or None, **paper}
    if record is None or name not in record.metrics:
        return line
    figure, floor = record.metrics[name], record.metrics.get(metric(name).floor)
    line |= record.model_dump(include={"experiment", "variant", "configuration", "tracking"})
    line |= figure.model_dump(include={"spread", "samples", "unit"})
    line |= {"measured": figure.value, "floor": floor and floor.value}
    line["low"], line["high"] = figure.interval or (None, None)
    line |= {"seeds": " ".join(map(str, figure.seeds)), "commit": " ".join([*record.commit, *record.plugins])}
    line |= {"changed": str(record.changed).lower(), "data": data_of(record), "chain": chain_of(record)}
    return line | ({"extractor": extractor_of(record, name)} if metric(name).uses_extractor else {})


def extractor_of(record: VariantRecord, name: str = "") -> str:
    """Extractor of a metric (all of the distances without one) with its networks, and torch-fidelity's version."""
    found = [record.extractor, *record.further_extractors]
    if name and metric(name).measured_with == "classifier of modes":
        found = [record.modes_by or record.extractor]
    elif name:
        found = [one for one in found if metric(name).named(one.kind) == name][:1]
    names = [one.name + (f" of {one.networks} networks" if one.networks > 1 else "") for one in found]
    return f"{', '.join(names)}, torch-fidelity {record.extractor.torch_fidelity}"


def changes_of(record: VariantRecord) -> str:
    """Base and changes of a run whose settings are not those of its file, in words; else empty."""
    changed = f" with {', '.join(record.changes)}" if record.changes else ""
    file = record.base or f"{record.experiment}.yaml"
    return f"{record.experiment} is {file}{changed}" if record.base or changed else ""


def kind_of(record: VariantRecord) -> str:
    """Settings of a combination of a grid, or origin of another program's images, in words; else empty."""
    if (one := record.foreign) is not None:
        return f"{one.images:,} images of another program, {one.path}, SHA-256 {one.sha256}"
    return ", ".join(f"{key}={value}" for key, value in record.grid.items())


def chain_of(record: VariantRecord) -> str:
    """The test chain in words, and whether images were stretched."""
    chain, steps = record.chain, "images of another program" if record.foreign else "no chain"
    if chain.steps:
        kernel = "" if chain.kernel == "langevin" else f"{chain.kernel}, "
        further = "".join(f", {name} {value}" for name, value in (chain.model_extra or {}).items())
        further += f", {chain.gradient_evaluations} gradients" * (chain.gradient_evaluations > chain.steps)
        steps = f"{kernel}{chain.steps} steps of {chain.step_size:g}{further}, potential {chain.potential}"
    return steps + ", each image stretched" * chain.stretch


def commands(paper: Paper, experiments: Path) -> Commands:
    """The command of each experiment that answers rows of the paper, in words, with backticks.

    Raises:
        UserError: one of them is no experiment.
    """
    found: Commands = {}
    for answer in {row.answer for table in paper.tables for row in table.rows if row.answer is not None}:
        found[answer] = f"`snakemake --config 'experiments=[{answer.experiment}]'`"
        path = experiments / f"{answer.experiment}.yaml"
        if not path.is_file():
            found[answer] += f", but {answer.experiment} is not in config/experiments yet"
            continue
        settings = read_experiment(path)
        own = [] if answer.variant in settings.models else [f"a variant {answer.variant}"]
        if lacking := [*settings.missing, *own]:
            found[answer] += f", once it has {' and '.join(lacking)}"
    return found


def answer_of(row: PaperRow, measured: Measured) -> VariantRecord | None:
    """Our record for a row of the paper, if it was measured."""
    return row.answer and measured.records.get(row.answer.experiment, {}).get(row.answer.variant)


def how_to_run(row: PaperRow, name: str, measured: Measured, runs: Commands) -> str:
    """How to fill the measured cell of a paper's row; empty if it is filled."""
    if row.answer is None:
        return "not trained here"
    if (record := answer_of(row, measured)) is None:
        return runs[row.answer]
    return "" if name in record.metrics else f"{'/'.join(row.answer)} was measured, without {name}"


def lines(measured: Measured, paper: Paper, runs: Commands) -> list[dict[str, Any]]:
    """All lines (column → value): all experiments with their quality against cost, then all rows of the paper."""
    found: list[dict[str, Any]] = []
    unavailable: list[dict[str, Any]] = []
    for experiment, variants in measured.records.items():
        title = f"measured: {experiment}"
        for variant, record in variants.items():
            shown = [name for name in record.metrics if metric(name).shown != "floor"]
            note = "; ".join(filter(None, (changes_of(record), kind_of(record))))
            found += [_line(title, variant, name, record, note) for name in shown]
            of = {"experiment": experiment, "variant": variant}
            unavailable += [_line(title, variant, name, note=why) | of for name, why in record.without.items()]
        for curve in curves(variants):
            record = variants[curve.variant]
            for steps, measured_, spread, gradients, seconds in curve.points:
                at = record.model_copy(update={"chain": record.chain.model_copy(update={"steps": steps})})
                line = _line(f"quality against cost: {experiment}", curve.variant, curve.metric, at)
                line |= {"measured": measured_, "spread": spread, "low": None, "high": None, "samples": curve.samples}
                found.append(line | {"gradients": gradients, "seconds": seconds})
    found += unavailable
    for table in paper.tables:
        for row in table.rows:
            for name, (value, mark) in row.figures.items():
                note = "; ".join(filter(None, (row.note, how_to_run(row, name, measured, runs))))
                ours = answer_of(row, measured)
                found.append(_line(table.title, row.model, name, ours, note, paper=value, mark=mark))
    return found


def paper_figures(table: Table, row: PaperRow, measured: Measured) -> list[tuple[str, str, str]]:
    """The paper's value, its mark, and our value, for each metric of a table; empty if missing."""
    found: list[tuple[str, str, str]] = []
    record = answer_of(row, measured)
    for name in table.metrics:
        figure, ours = row.figures.get(name), record.metrics.get(name) if record else None
        shown = with_certainty(name, ours) if figure and ours else ""
        found.append((f"{figure.value:g}" if figure else "", figure.mark if figure else "", shown))
    return found


def paper_cells(table: Table, row: PaperRow, measured: Measured) -> list[str]:
    """A row of a paper's table: model, then per metric the paper's value with its mark, and ours."""
    pairs = [(f"{value} ({mark})" if value else "", ours) for value, mark, ours in paper_figures(table, row, measured)]
    return [row.model, *(cell for pair in pairs for cell in pair)]


def paper_table(table: Table, measured: Measured, runs: Commands) -> Cells:
    """A paper's table, with our values and how to measure them."""
    pairs = [(f"{with_direction(name)}, paper", f"{name}, measured") for name in table.metrics]
    rows = [[*paper_cells(table, row, measured), remark_of(row, measured, runs)] for row in table.rows]
    return ["model", *(cell for pair in pairs for cell in pair), "to measure it"], rows


def remark_of(row: PaperRow, measured: Measured, runs: Commands) -> str:
    """Remark on a row of the paper, and how to fill its measured cells, with commands in backticks."""
    hows = dict.fromkeys(how_to_run(row, name, measured, runs) for name in row.figures)
    ours = record.metrics if (record := answer_of(row, measured)) else {}
    units = [f"{name} measured in {ours[name].unit}" for name in row.figures if name in ours and ours[name].unit]
    return "; ".join(filter(None, (row.note, *hows, *units)))


LEGEND = (
    "For one seed, a value has its 95 % interval [low, high] over images: over the samples; for recall and coverage "
    "over the training images; for detection over the held-out images and the set. Over several seeds it is mean ± "
    "standard deviation, and each seed's interval is listed with its run. AUPR is the average precision with the "
    "held-out images as positives, AUPR-out with the set as positives. FPR95 is the share of the set that passes "
    "where 95 % of the held-out images do. FID means the standard Inception features only; a distance in other "
    "features is named after them. An empty measured cell was not run. Marks of the paper's values: A, two "
    "independent sources or the authors' repository; B, one source; M, from memory, unverified."
)


def overview(variants: dict[str, VariantRecord], *, certain: bool = True) -> Cells:
    """Metrics × variants of an experiment, `certain`: with spreads or intervals; then ratio, floor, count of images."""
    shown = comparison_rows(variants)
    ratio, floors = ratio_name(variants, shown), any(row.floor for row in shown)
    rows = []
    for row in shown:
        shown_value = with_certainty if certain else lambda name, figure: format_value(name, figure.value)
        cells = [shown_value(row.metric, figure) if figure else "" for figure in row.figures.values()]
        extra = [*([row.ratio] if ratio else []), *([row.floor] if floors else [])]
        rows.append([with_direction(row.metric), *cells, *extra, row.samples])
    return ["metric", *variants, *([ratio] if ratio else []), *(["perfect sampler"] if floors else []), "images"], rows


def data_of(record: VariantRecord, digits: int = 64) -> str:
    """Hash of the data, cut to `digits`, marked if the files are the user's."""
    return ("user's files " if record.users else "") + record.data[:digits]


def origin_table(variants: dict[str, VariantRecord]) -> Cells:
    """Origin of the variants' values, one row each, hashes cut to twelve digits."""
    header, rows = ["variant", "seeds", "chain", "extractor", "commit", "data", "configuration", "MLflow run"], []
    for record in variants.values():
        seeds = ", ".join(str(run.seed) for run in record.runs)
        changed = {True: " + changes", "unknown": ""}.get(record.changed, "")
        plugins = [re.sub(r"(sha256:.{12}).*", r"\1", one) for one in record.plugins]
        commit = " ".join([*(name[:12] for name in record.commit), *plugins]) + changed
        facts = [chain_of(record), extractor_of(record), commit, data_of(record, 12), record.configuration[:12]]
        rows.append([record.variant, seeds, *facts, record.tracking or ""])
    return header, rows


def remarks(variants: dict[str, VariantRecord]) -> list[str]:
    """Remarks on an experiment, one paragraph each: scores of real images, units, unavailable metrics with reasons."""
    real = next(iter(variants.values())).real
    scores = (f"{name} {number(one.value)} ({one.samples} images)" for name, one in real.items())
    units: dict[str, dict[str, None]] = {}
    unavailable = []
    for variant, record in variants.items():
        for name, figure in record.metrics.items():
            if figure.unit:
                units.setdefault(figure.unit, {})[name] = None
        for reason in dict.fromkeys(record.without.values()):
            names = ", ".join(name for name, why in record.without.items() if why == reason)
            unavailable.append(f"{variant} has no {names}: {reason}.")
    by_unit = [f"In {unit}: {', '.join(names)}." for unit, names in units.items()]
    trainings = [(name, run.own_training) for name, record in variants.items() for run in record.runs]
    taken = dict.fromkeys(f"{name}: {own.status}." for name, own in trainings if own and own.checkpoint)
    changes, kinds = changes_of(next(iter(variants.values()))), {name: kind_of(one) for name, one in variants.items()}
    settings = [f"{changes}."] * bool(changes) + [f"{name}: {kind}." for name, kind in kinds.items() if kind]
    return [*settings, *taken, f"Real images, held out, score {', '.join(scores)}.", *by_unit, *unavailable]


def snapshots(record: VariantRecord) -> list[str]:
    """The snapshot of a variant's energy, the last candidate and the rule, one line per seed."""
    found = []
    for run in record.runs:
        if "ebm" not in run.training or (selection := run.training["ebm"].selection) is None:
            continue
        chosen, last = (selection.candidates[which] for which in (selection.chosen, selection.last))
        other = "the last one"
        if selection.chosen != selection.last:
            other += f", {selection.last}, has {_distance(last)}"
        found.append(
            f"{record.variant}, seed {run.seed}: the snapshot of iteration {selection.chosen}, "
            f"{_distance(chosen)}, {other}. Rule: {selection.rule}."
        )
    return found


def _distance(value: float | None) -> str:
    return "no distance (images that are not finite)" if value is None else f"distance {number(value)}"


def grid(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its columns padded except the last one."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header) - 1)]
    return "\n".join(
        f"| {' | '.join([*(cell.ljust(width) for cell, width in zip(cells[:-1], widths, strict=True)), cells[-1]])} |"
        for cells in (header, [*("-" * max(width, 3) for width in widths), "---"], *rows)
    )


def results_markdown(measured: Measured, paper: Paper, runs: Commands) -> str:
    """The results as Markdown: all experiments, then the paper's tables."""
    functions = {each.__name__: each for each in (grid, origin_table, overview, paper_table, remarks, snapshots)}
    return render("report/benchmarks.md.j2", measured=measured, paper=paper, runs=runs, legend=LEGEND, **functions)
