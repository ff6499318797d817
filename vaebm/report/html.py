"""The page results/report.html: one file that needs nothing beside it; pictures are inlined."""

from __future__ import annotations

import base64
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from vaebm.config import BASELINE
from vaebm.records.metrics import (
    Compared,
    Figure,
    Record,
    arrowed,
    beside_the_baseline,
    certainty,
    compared,
    in_units,
    lower_is_better,
    number,
    ratio,
    ratio_name,
    with_certainty,
    written,
)  # fmt: skip
from vaebm.report.captions import gallery
from vaebm.report.paper import Paper, Table
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

HEADLINES = ("FID", "FD", "IS", "precision", "recall", "modes", "KL", "AUROC")
"""How the names of the metrics of the cards above an experiment's table begin, as far as they were measured."""

BESIDE = ("-heldout", "-stretched", "-energy", "-likelihood")
"""How the names of those end that only say more of a headline."""

BEYOND = {"spread": (2.0, "twice the spread over seeds"), "interval": (1.0, "the intervals")}
"""From how many of its units on a difference is told, at about 95 % for either kind of `metrics.Uncertainty`, and in words."""


class Card(NamedTuple):
    """What one metric was before the chain and is after it."""

    metric: str
    variant: str
    before: str
    after: str
    change: str
    """The ratio, or the difference where a ratio means nothing."""
    verdict: str
    """Which is better, as far as the figures' uncertainty lets it be told."""


def card(row: Compared, variant: str, before: Figure, after: Figure) -> Card:
    """The card of one metric for a variant and the NVAE alone."""
    relative, difference, apart = (
        ratio(row.metric, before["value"], after["value"]),
        after["value"] - before["value"],
        in_units(before, after),
    )
    change = (
        f"× {number(relative, 3)}"
        if relative is not None
        else f"{'−' if difference < 0 else '+'}{number(abs(difference), 2)}"
    )
    if not difference:
        verdict = "as good"
    elif apart is None:
        verdict = "how uncertain is not known"
    elif abs(apart[0]) < BEYOND[apart[1]][0]:
        verdict = f"no difference beyond {BEYOND[apart[1]][1]}"
    else:
        verdict = "better" if (difference < 0) == lower_is_better(row.metric) else "worse"
    first, second = (written(row.metric, figure["value"], 3) for figure in (before, after))
    return Card(arrowed(row.metric), variant, first, second, change, verdict)


def cards(variants: dict[str, Record]) -> list[Card]:
    """The headline figures: every one of the experiment's first variant, the first one of each further variant."""
    others, names = beside_the_baseline(variants), list(variants)
    found = []
    for variant in others:
        rows = []
        for row in (row for _, rows in compared(variants) for row in rows):
            before, after = row.figures[names.index(BASELINE)], row.figures[names.index(variant)]
            if before and after and row.metric.split("-")[0] in HEADLINES and not row.metric.endswith(BESIDE):
                rows.append(card(row, variant, before, after))
        found += rows if variant == others[0] else rows[:1]
    return found


def _inline(path: Path) -> str | None:
    """A PNG as a data URL; None where there is none."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() if path.is_file() else None


def _pictures(record: Record, folder: Path) -> dict[str, Any]:
    """The pictures of one variant's first seed, inlined, and which ones are missing."""
    wanted = [(picture, _inline(folder / picture.path)) for picture in gallery(record)]
    beside = {"steps.png": _steps(record), "ood.png": _detection(record)}
    return {
        "pictures": [
            {**picture._asdict(), "grid": picture.grid, "url": url, "table": beside.get(picture.path.name)}
            for picture, url in wanted
            if url
        ],
        "missing": [f"{picture.title} ({folder.name}/{picture.path.as_posix()})" for picture, url in wanted if not url],
    }


def _code(text: str) -> Markup:
    """Text with its backticks made <code>."""
    parts = str(text).split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts)
    )


def _training(record: Record) -> dict[str, Any]:
    """How the variant's own training ended, one row a seed; what its guard did, and which snapshot was taken."""
    facts = {
        "status": "status",
        "steps": "iterations",
        "snapshot": "snapshot",
        "skipped_steps": "skipped",
        "seconds": "seconds",
        "device": "device",
    }
    rows, events = [], []
    for run in record["runs"]:
        stage = list(run["training"])[-1]  # an energy's own training comes after its NVAE's
        training = run["training"][stage]
        rows.append(
            {
                "seed": str(run["seed"]),
                **{name: f"{training[key]}" for key, name in facts.items() if training.get(key) is not None},
            }
        )
        events += [
            f"Seed {run['seed']}, iteration {event['iteration']}: {event['reason']}: {event['action']}."
            for event in training.get("events", [])
        ]
    header = list(dict.fromkeys(name for row in rows for name in row))
    return {
        "header": header,
        "rows": [[row.get(name, "") for name in header] for row in rows],
        "told": [*events, *snapshots(record)],
    }


def _seeds(record: Record) -> dict[str, Any] | None:
    """Every figure of every seed with its own interval; None for a single seed, whose figures are the table's."""
    if len(record["runs"]) < 2:
        return None
    rows = []
    for _, found in compared({record["variant"]: record}):
        for row in found:
            of_seeds = record["metrics"][row.metric]["by_seed"]
            rows.append(
                [arrowed(row.metric), *(with_certainty(row.metric, {**one, "spread": None}) for one in of_seeds)]
            )
    return {"header": ["metric", *(f"seed {run['seed']}" for run in record["runs"])], "rows": rows}


def _steps(record: Record) -> dict[str, Any] | None:
    """Quality and energy against the number of steps, over the seeds; None for a variant that it was not measured of."""
    found = [run["steps"] for run in record["runs"] if run["steps"]]
    if not found:
        return None
    names = [name for name in found[0] if name not in ("counts", "samples")]
    rows = [
        [str(count), *(_mean([steps[name][index] for steps in found]) for name in names)]
        for index, count in enumerate(found[0]["counts"])
    ]
    return {"header": ["steps", *names], "rows": rows}


def _detection(record: Record) -> dict[str, Any] | None:
    """How well every score tells held-out images from every set, over the seeds; None for a variant that it was not measured of."""
    found = [run["ood"]["figures"] for run in record["runs"] if run.get("ood") and run["ood"]["figures"]]
    if not found:
        return None
    names = list(dict.fromkeys(name.partition("-")[0] for name in found[0]))
    scored = list(dict.fromkeys(name.partition("-")[2] for name in found[0]))
    rows = [
        [one, *(_mean([figures[f"{name}-{one}"]["value"] for figures in found]) for name in names)] for one in scored
    ]
    return {"header": ["set, score", *map(arrowed, names)], "rows": rows}


def _mean(values: list[float | None]) -> str:
    """Mean ± standard deviation, the latter left out for one value; chains that left the finite numbers have no value."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return "not finite"
    return number(statistics.mean(finite)) + (f" ± {number(statistics.stdev(finite), 2)}" if len(finite) > 1 else "")


def _facts(variants: dict[str, Record]) -> str:
    """The seeds, and the test chains of the variants, in a sentence each."""
    seeds = dict.fromkeys(run["seed"] for record in variants.values() for run in record["runs"])
    chains = [
        f"{variant}: {chain_of(record)}."
        for variant, record in variants.items()
        if record["chain"]["steps"] or record["chain"]["stretch"]
    ]
    return " ".join([f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}.", *chains])


def _section(experiment: str, variants: dict[str, Record], folder: Path) -> dict[str, Any]:
    """What the page says of one experiment; the NVAE alone comes last, it is what the others start from."""
    families = [
        (
            title,
            [
                (
                    row,
                    [
                        (written(row.metric, one["value"]), certainty(row.metric, one)) if one else ("", "")
                        for one in row.figures
                    ],
                )
                for row in rows
            ],
        )
        for title, rows in compared(variants)
    ]
    first = next(iter(variants.values()))
    return {
        "name": experiment,
        "facts": _facts(variants),
        "cards": cards(variants),
        "variants": list(variants),
        "families": families,
        "ratio": ratio_name(variants),
        "floors": any(row.floor for _, rows in compared(variants) for row in rows),
        "remarks": remarks(variants),
        "models": [
            {"name": name, **_pictures(record, folder), "training": _training(record), "seeds": _seeds(record)}
            for name, record in sorted(variants.items(), key=lambda item: item[0] == BASELINE)
        ],
        "classifier": _inline(folder / "classifier" / "pictures" / "confusion.png")
        if first["modes_by"] or first["extractor"]["kind"] == "classifier"
        else None,
        "origin": [origin_cells(record) for record in variants.values()],
        "versions": ", ".join(f"{name} {version}" for name, version in first["versions"].items()),
    }


def _table(table: Table, measured: Measured, runs: Commands) -> dict[str, Any]:
    """One of the paper's tables, ours beside."""
    rows = []
    for row in table.rows:
        note = remark_of(row, measured, runs) if row.answer else row.note or ""
        rows.append(
            {
                "model": row.model,
                "ours": row.answer is not None,
                "cells": paper_figures(table, row, measured),
                "note": note,
            }
        )
    return {
        "title": table.title,
        "note": table.note,
        "metrics": [arrowed(metric) for metric in table.metrics],
        "rows": rows,
    }


def page(measured: Measured, paper: Paper, runs: Commands, results: Path) -> str:
    """The page: every measured experiment with its figures and pictures, then the paper's tables."""
    environment = Environment(
        loader=PackageLoader("vaebm", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _code, "arrowed": arrowed, "minus": lambda text: text.replace("-", "−")}
    return environment.get_template("report.html.j2").render(
        sections=[
            _section(experiment, variants, results / experiment) for experiment, variants in measured.records.items()
        ],
        notes=measured.notes,
        tables=[_table(table, measured, runs) for table in paper.tables],
        legend=LEGEND,
        origin_header=ORIGIN_HEADER,
    )
