"""The report results/report.html: one self-contained file with inlined plots."""

import base64
import re
import statistics
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from vaebm.config import BASELINE
from vaebm.records.metrics import FD, format_value, metric, number, with_direction
from vaebm.records.results import MetricValue, VariantRecord
from vaebm.report.captions import GRIDS, gallery
from vaebm.report.paper import Paper, Table
from vaebm.report.rows import (
    ComparisonRow,
    certainty,
    comparison_rows,
    non_baseline,
    ratio,
    ratio_name,
    uncertainty,
    with_certainty,
    z_score,
)
from vaebm.report.table import (
    LEGEND,
    ORIGIN_HEADER,
    Commands,
    Measured,
    chain_of,
    origin_cells,
    paper_figures,
    remark_of,
    remarks,
    snapshots,
)

BEYOND = {"spread": (2.0, "twice the spread over seeds"), "interval": (1.0, "the intervals")}
"""Kind of `rows.uncertainty` → units of a difference at about 95 %, and their description."""


class Card(NamedTuple):
    """One metric before and after the chain."""

    metric: str
    variant: str
    before: str
    after: str
    change: str
    """Ratio, or difference if a ratio has no meaning."""
    verdict: str
    """Comparison within the uncertainty."""


def card(row: ComparisonRow, variant: str, before: MetricValue, after: MetricValue) -> Card:
    """Compare a variant with the NVAE in one metric."""
    relative, difference = ratio(row.metric, before.value, after.value), after.value - before.value
    apart = z_score(before, after)
    signed = f"{'−' if difference < 0 else '+'}{number(abs(difference), 2)}"
    change = signed if relative is None else f"× {number(relative, 3)}"
    if not difference:
        verdict = "as good"
    elif apart is None:
        verdict = "how uncertain is not known"
    elif abs(apart[0]) < BEYOND[apart[1]][0]:
        verdict = f"no difference beyond {BEYOND[apart[1]][1]}"
    else:
        verdict = "better" if (difference < 0) == (metric(row.metric).better == "↓") else "worse"
    first, second = (format_value(row.metric, figure.value, 3) for figure in (before, after))
    return Card(with_direction(row.metric), variant, first, second, change, verdict)


def cards(variants: dict[str, VariantRecord]) -> list[Card]:
    """The cards: all headline metrics of the first variant, the first one of each further variant."""
    others = non_baseline(variants)
    found = []
    for variant in others:
        rows = [
            card(row, variant, before, after)
            for row in comparison_rows(variants)
            if metric(row.metric).shown == "card"
            and (before := row.figures[BASELINE])
            and (after := row.figures[variant])
        ]
        found += rows if variant == others[0] else rows[:1]
    return found


def _inline(path: Path) -> str | None:
    """A PNG as a data URL; None if it is missing."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() if path.is_file() else None


def _pictures(record: VariantRecord, folder: Path) -> dict[str, Any]:
    """The plots of one variant's first seed, inlined, and the missing ones."""
    tables = {"steps.png": _steps(record), "ood.png": _detection(record)}
    shown: list[dict[str, Any]] = []
    missing: list[str] = []
    for picture in gallery(record):
        if url := _inline(folder / picture.path):
            table = tables.get(picture.path.name)
            shown.append({**picture._asdict(), "grid": picture.path.stem in GRIDS, "url": url, "table": table})
        else:
            missing.append(f"{picture.title} ({folder.name}/{picture.path.as_posix()})")
    return {"pictures": shown, "missing": missing}


def _code(text: str) -> Markup:
    """Convert backticks to <code>."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _training(record: VariantRecord) -> dict[str, Any]:
    """Facts of the variant's own training, one row per seed, its events, and its snapshots."""
    facts = {"status": "status", "steps": "iterations", "snapshot": "snapshot", "skipped_steps": "skipped"}
    facts |= {"seconds": "seconds", "device": "device"}
    rows, events = [], []
    for run in record.runs:
        training = run.training[next((stage for stage in run.training if stage != BASELINE), BASELINE)]
        known = {name: getattr(training, key) for key, name in facts.items()}
        rows.append({"seed": str(run.seed), **{name: f"{fact}" for name, fact in known.items() if fact is not None}})
        events += [
            f"Seed {run.seed}, iteration {event.iteration}: {event.reason}: {event.action}."
            for event in training.events
        ]
    header = list(dict.fromkeys(name for row in rows for name in row))
    return {
        "header": header,
        "rows": [[row.get(name, "") for name in header] for row in rows],
        "remarks": [*events, *snapshots(record)],
    }


def _seeds(record: VariantRecord) -> dict[str, Any] | None:
    """All metrics of each seed with their intervals; None for a single seed."""
    if len(record.runs) < 2:
        return None
    names = [row.metric for row in comparison_rows({record.variant: record})]
    rows = [
        [with_direction(name), *(with_certainty(name, one) for one in record.metrics[name].by_seed)] for name in names
    ]
    return {"header": ["metric", *(f"seed {run.seed}" for run in record.runs)], "rows": rows}


def _steps(record: VariantRecord) -> dict[str, Any] | None:
    """Quality and energy against the number of steps, over the seeds; None if not measured."""
    found = [run.steps for run in record.runs if run.steps]
    if not found:
        return None
    columns = [[steps.distances for steps in found], [steps.energy for steps in found]]
    rows = [
        [str(count), *(_mean([curve[index] for curve in curves]) for curves in columns)]
        for index, count in enumerate(found[0].counts)
    ]
    return {"header": ["steps", found[0].metric, "energy"], "rows": rows}


def _detection(record: VariantRecord) -> dict[str, Any] | None:
    """Detection metrics of every score and set, over the seeds; None if not measured."""
    found = [run.ood.figures for run in record.runs if run.ood and run.ood.figures]
    if not found:
        return None
    arrows = {metric(name).quantity: metric(name).better for name in found[0]}
    scored = list(dict.fromkeys(name.removeprefix(f"{metric(name).quantity}-") for name in found[0]))
    rows = [
        [one, *(_mean([figures[f"{quantity}-{one}"].value for figures in found]) for quantity in arrows)]
        for one in scored
    ]
    return {"header": ["set, score", *(f"{quantity} {arrow}" for quantity, arrow in arrows.items())], "rows": rows}


def _mean(values: list[float | None]) -> str:
    """Mean ± standard deviation (omitted for one value); `not finite` if a value is missing."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return "not finite"
    return number(statistics.mean(finite)) + (f" ± {number(statistics.stdev(finite), 2)}" if len(finite) > 1 else "")


def _section(experiment: str, variants: dict[str, VariantRecord], folder: Path) -> dict[str, Any]:
    """Content of one experiment, with the NVAE as the last variant."""

    def cell(name: str, figure: MetricValue | None) -> tuple[str, str]:
        return (format_value(name, figure.value), certainty(name, figure)) if figure else ("", "")

    shown = comparison_rows(variants)
    families = [
        (title, [(row, [cell(row.metric, one) for one in row.figures.values()]) for row in rows])
        for title, rows in groupby(shown, key=lambda row: metric(row.metric).family)
    ]
    first = next(iter(variants.values()))
    seeds = dict.fromkeys(run.seed for record in variants.values() for run in record.runs)
    sampled = {name: record for name, record in variants.items() if record.chain.steps or record.chain.stretch}
    facts = [f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}."]
    facts += [f"{name}: {chain_of(record)}." for name, record in sampled.items()]
    classified = first.modes_by or first.extractor.kind == "classifier"
    return {
        "name": experiment,
        "facts": " ".join(facts),
        "cards": cards(variants),
        "variants": list(variants),
        "families": families,
        "ratio": ratio_name(variants),
        "floors": any(row.floor for row in shown),
        "remarks": remarks(variants),
        "models": [
            {"name": name, **_pictures(record, folder), "training": _training(record), "seeds": _seeds(record)}
            for name, record in sorted(variants.items(), key=lambda item: item[0] == BASELINE)
            if not record.grid
        ],
        "grids": _grids(variants, folder) if any(record.grid for record in variants.values()) else [],
        "classifier": _inline(folder / "classifier" / "pictures" / "confusion.png") if classified else None,
        "origin": [origin_cells(record) for record in variants.values()],
        "versions": ", ".join(f"{name} {version}" for name, version in first.versions.items()),
    }


def _grids(variants: dict[str, VariantRecord], folder: Path) -> list[dict[str, Any]]:
    """A plot of one metric over each grid, also written into `folder`."""
    from vaebm.plots.charts import over_grid

    found = []
    points = [record for record in variants.values() if record.grid]
    for grid, group in groupby(points, key=lambda record: record.variant.rpartition("_")[0]):
        records, path = list(group), folder / f"{grid}.png"
        name = records[0].plotted or FD.named(records[0].extractor.kind)
        figures = [(record.grid, record.metrics[name]) for record in records if name in record.metrics]
        if figures:
            certain = [(values, one.value, (uncertainty(one) or ("", 0.0))[1]) for values, one in figures]
            over_grid(certain, with_direction(name), path)
        what = "" if figures else " (not measured)"
        found.append({"title": f"{grid}: {with_direction(name)}{what}", "url": _inline(path) if figures else None})
    return found


def _table(table: Table, measured: Measured, runs: Commands) -> dict[str, Any]:
    """One of the paper's tables, with our values."""
    rows = [
        {
            "model": row.model,
            "ours": row.answer is not None,
            "cells": paper_figures(table, row, measured),
            "note": remark_of(row, measured, runs) if row.answer else row.note or "",
        }
        for row in table.rows
    ]
    metrics = [with_direction(name) for name in table.metrics]
    return {"title": table.title, "note": table.note, "metrics": metrics, "rows": rows}


def page(measured: Measured, paper: Paper, runs: Commands, results: Path) -> str:
    """The report: all experiments with metrics and plots, then the paper's tables."""
    environment = Environment(
        loader=PackageLoader("vaebm", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _code, "arrowed": with_direction, "minus": lambda text: text.replace("-", "−")}
    return environment.get_template("report.html.j2").render(
        sections=[_section(name, variants, results / name) for name, variants in measured.records.items()],
        notes=measured.notes,
        tables=[_table(table, measured, runs) for table in paper.tables],
        legend=LEGEND,
        origin_header=ORIGIN_HEADER,
    )
