"""The report results/report.html: one self-contained file with inlined plots."""

import base64
import re
import statistics
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from vaebm.config import BASELINE
from vaebm.records.metrics import FD, format_value, metric, number, with_direction
from vaebm.records.results import MetricValue, VariantRecord
from vaebm.records.templates import render
from vaebm.report import rows, table
from vaebm.report.captions import Picture, gallery
from vaebm.report.cost import plot_cost
from vaebm.report.paper import Paper
from vaebm.report.rows import ComparisonRow, comparison_rows
from vaebm.report.table import Cells, Commands, Measured

BEYOND = {"spread": (2.0, "twice the spread over seeds"), "interval": (1.0, "the intervals")}
"""Kind of `rows.uncertainty` → units of a difference at about 95 %, and their description."""


class Card(NamedTuple):
    """One metric before and after the chain."""

    metric: str
    meaning: str
    """What the metric measures, in a few words."""
    variant: str
    before: str
    after: str
    change: str
    """Ratio, or difference if a ratio has no meaning."""
    verdict: str
    """Comparison within the uncertainty."""


def card(row: ComparisonRow, variant: str, before: MetricValue, after: MetricValue) -> Card:
    """Compare a variant with the NVAE in one metric."""
    relative, difference = rows.ratio(row.metric, before.value, after.value), after.value - before.value
    apart = rows.z_score(before, after)
    signed = f"{'−' if difference < 0 else '+'}{number(abs(difference), 2)}"
    change = signed if relative is None else f"× {number(relative, 3)}"
    if not difference:
        verdict = "as good"
    elif apart is None:
        verdict = "uncertainty unknown"
    elif abs(apart[0]) < BEYOND[apart[1]][0]:
        verdict = f"no difference beyond {BEYOND[apart[1]][1]}"
    else:
        verdict = "better" if (difference < 0) == (metric(row.metric).better == "↓") else "worse"
    first, second = (format_value(row.metric, figure.value, 3) for figure in (before, after))
    meaning = re.split("[,;]", metric(row.metric).sentence)[0]
    return Card(with_direction(row.metric), meaning, variant, first, second, change, verdict)


def cards(variants: dict[str, VariantRecord]) -> list[Card]:
    """The cards: all headline metrics of the first variant, the first one of each further variant."""
    found: list[Card] = []
    headlines = [row for row in comparison_rows(variants) if metric(row.metric).shown == "card"]
    for variant in rows.non_baseline(variants):
        pairs = [(row, row.figures[BASELINE], row.figures[variant]) for row in headlines]
        shown = [card(row, variant, before, after) for row, before, after in pairs if before and after]
        found += shown[:1] if found else shown
    return found


def leading(variants: dict[str, VariantRecord]) -> str:
    """The variant whose samples are shown above the metrics: the first one that is not the NVAE, without a grid."""
    return next((name for name, one in variants.items() if name != BASELINE and not one.grid), next(iter(variants)))


def families(shown: list[ComparisonRow]) -> list[tuple[str, list[ComparisonRow]]]:
    """The rows of each family of metrics."""
    return [(title, list(found)) for title, found in groupby(shown, key=lambda row: metric(row.metric).family)]


def inlined(path: Path) -> str | None:
    """A PNG as a data URL; None if it is missing."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() if path.is_file() else None


def pictures(record: VariantRecord, folder: Path) -> tuple[list[tuple[Picture, str, Cells | None]], list[str]]:
    """The plots of one variant's first seed, inlined, with their tables; and the missing ones."""
    tables = {"steps.png": _steps(record), "ood.png": _detection(record)}
    shown, missing = [], []
    for picture in gallery(record):
        separate = folder / picture.path.parents[1] / "ood" / picture.path.name  # as a storage has those of `vaebm ood`
        if url := inlined(folder / picture.path) or inlined(separate):
            shown.append((picture, url, tables.get(picture.path.name)))
        elif "later" not in picture.flags:
            missing.append(f"{picture.title} ({folder.name}/{picture.path.as_posix()})")
    return shown, missing


def training(record: VariantRecord) -> tuple[Cells, list[str]]:
    """Facts of the variant's own training, one row per seed; its events, and its snapshots."""
    facts = {"status": "status", "steps": "iterations", "snapshot": "snapshot", "skipped_steps": "skipped"}
    facts |= {"seconds": "seconds", "device": "device"}
    seeds, events = [], []
    for run in record.runs:
        if (own := run.own_training) is None:
            continue
        known = {name: getattr(own, key) for key, name in facts.items() if key == "status" or own.checkpoint is None}
        seeds.append({"seed": str(run.seed), **{name: str(fact) for name, fact in known.items() if fact is not None}})
        events += [f"Seed {run.seed}, iteration {one.iteration}: {one.reason}: {one.action}." for one in own.events]
    frame = pd.DataFrame(seeds).fillna("")
    return (frame.columns.tolist(), frame.to_numpy().tolist()), [*events, *table.snapshots(record)]


def by_seed(record: VariantRecord) -> Cells:
    """All metrics of each seed with their intervals."""
    lines = []
    for name in (row.metric for row in comparison_rows({record.variant: record})):
        lines.append([with_direction(name), *(rows.with_certainty(name, one) for one in record.metrics[name].by_seed)])
    return ["metric", *(f"seed {run.seed}" for run in record.runs)], lines


def _steps(record: VariantRecord) -> Cells | None:
    """Quality and energy against the number of steps, over the seeds; None if not measured."""
    if not (found := [run.steps for run in record.runs if run.steps]):
        return None
    distances = zip(*(steps.distances for steps in found), strict=True)
    energies = zip(*(steps.energy for steps in found), strict=True)
    columns = map(str, found[0].counts), map(_mean, distances), map(_mean, energies)
    return ["steps", found[0].metric, "energy"], [list(row) for row in zip(*columns, strict=True)]


def _detection(record: VariantRecord) -> Cells | None:
    """Detection metrics of every score and set, over the seeds; None if not measured."""
    if not (found := [run.ood.figures for run in record.runs if run.ood and run.ood.figures]):
        return None
    names = [name for name in found[0] if all(name in figures for figures in found)]
    arrows = {metric(name).quantity: metric(name).better for name in names}
    scored = dict.fromkeys(name.removeprefix(f"{metric(name).quantity}-") for name in names)
    lines = [
        [one, *(_mean([figures[f"{quantity}-{one}"].value for figures in found]) for quantity in arrows)]
        for one in scored
    ]
    return ["set, score", *(f"{quantity} {arrow}" for quantity, arrow in arrows.items())], lines


def _mean(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation (omitted for one value); `not finite` if a value is missing."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return "not finite"
    return number(statistics.mean(finite)) + (f" ± {number(statistics.stdev(finite), 2)}" if len(finite) > 1 else "")


def grids(variants: dict[str, VariantRecord], folder: Path) -> list[tuple[str, str | None]]:
    """Title and inlined plot of one metric over each grid; the plots are also written into `folder`."""
    from vaebm.plots.charts import over_grid

    found = []
    points = [record for record in variants.values() if record.grid]
    for grid, group in groupby(points, key=lambda record: record.variant.rpartition("_")[0]):
        records, path = list(group), folder / f"{grid}.png"
        name = records[0].plotted or FD.named(records[0].extractor.kind)
        figures = [(record.grid, record.metrics[name]) for record in records if name in record.metrics]
        if figures:
            certain = [(values, one.value, (rows.uncertainty(one) or ("", 0.0))[1]) for values, one in figures]
            over_grid(certain, with_direction(name), path)
        what = "" if figures else " (not measured)"
        found.append((f"{grid}: {with_direction(name)}{what}", inlined(path) if figures else None))
    return found


def page(measured: Measured, paper: Paper, runs: Commands, results: Path) -> str:
    """The report: all experiments with metrics and plots, then the paper's tables."""
    content = {"measured": measured, "paper": paper, "runs": runs, "results": results, "baseline": BASELINE}
    functions = (by_seed, cards, families, format_value, grids, inlined, leading, pictures, plot_cost, training)
    named = {each.__name__: each for each in functions}
    return render("report/report.html.j2", rows=rows, table=table, **content, **named)
