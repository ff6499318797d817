"""Comparison of two folders of results: metrics, and their origins."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from vaebm.records.files import read_record
from vaebm.records.metrics import format_value, metric, number, with_direction
from vaebm.records.results import MetricValue, Numbers, VariantRecord
from vaebm.report.rows import with_certainty, z_score
from vaebm.report.table import chain_of, extractor_of, grid
from vaebm.system.errors import UserError
from vaebm.system.files import writing

BENCHMARKS = "benchmarks.json"
"""File of all values in a folder of results: experiment → variant → metric → number."""

COMPARISON_COLUMNS = [
    "experiment", "variant", "metric", "here", "there", "difference", "unit", "in_units", "comparable", "remark",
]  # fmt: skip

ADVICE = "name a folder of results that `vaebm benchmarks` wrote, or its benchmarks.json"


class Side(NamedTuple):
    """One of the two results."""

    numbers: dict[tuple[str, str], dict[str, float]]
    """(experiment, variant) → metric → number."""
    records: dict[tuple[str, str], VariantRecord]
    """The record of the numbers of an (experiment, variant), if available."""


@dataclass(frozen=True)
class Pair:
    """One metric of one variant on both sides; None if a side lacks it."""

    experiment: str
    variant: str
    metric: str
    here: float | None
    there: float | None
    figures: tuple[MetricValue | None, MetricValue | None]
    """With uncertainty, if known."""
    obstacle: str
    """Why the two are not comparable; empty if they are, or if it is unknown."""

    @property
    def comparable(self) -> str:
        """ "true", "false", or "unknown" if an origin is unknown."""
        if self.here is None or self.there is None or self.obstacle:
            return "false"
        return "unknown" if None in self.figures else "true"

    @property
    def difference(self) -> float | None:
        """There minus here; None if not comparable."""
        return None if self.here is None or self.there is None or self.obstacle else self.there - self.here

    @property
    def units(self) -> tuple[float, str] | None:
        """The difference in units of its uncertainty, and its kind (see `rows.z_score`)."""
        one, other = self.figures
        return z_score(one, other) if one and other and self.difference is not None else None

    @property
    def remark(self) -> str:
        """Obstacle, unknown origin, and different numbers of images."""
        one, other = self.figures
        unknown = "origin unknown" if self.comparable == "unknown" else ""
        counts = (
            f"{one.samples:,} and {other.samples:,} images" if one and other and one.samples != other.samples else ""
        )
        return "; ".join(filter(None, (self.obstacle, unknown, counts)))

    def words(self) -> list[str]:
        """Variant, metric, here, there, difference, how much that is, remark."""
        sides = [
            with_certainty(self.metric, figure) if figure else "" if value is None else format_value(self.metric, value)
            for value, figure in zip((self.here, self.there), self.figures, strict=True)
        ]
        difference = "" if self.difference is None else number(self.difference, 3) if self.difference else "same"
        units = ""
        if self.units and self.difference:
            units = f"{self.units[0]:+.1f} {'spreads' if self.units[1] == 'spread' else 'half-widths'}"
        return [self.variant, with_direction(self.metric), *sides, difference, units, self.remark]

    def cells(self) -> dict[str, Any]:
        """One value per column of `COMPARISON_COLUMNS`."""
        units, kind = self.units or (None, None)
        names = (self.experiment, self.variant, self.metric)
        values = (self.here, self.there, self.difference, kind, units, self.comparable, self.remark or None)
        return dict(zip(COMPARISON_COLUMNS, (*names, *values), strict=True))


def read_side(path: Path) -> Side:
    """Read a folder of results, or its benchmarks.json, with the records in the same folder.

    Records whose values differ from benchmarks.json are ignored.

    Raises:
        UserError: there is no such folder or file, or it is damaged.
    """
    file = path / BENCHMARKS if path.is_dir() else path
    if not file.is_file():
        found = f"a folder without {BENCHMARKS}" if path.is_dir() else "nothing there"
        raise UserError(f"{path}: expected results to compare, found {found}; {ADVICE}")
    content = read_record(Numbers, file, "experiment → variant → metric → number", ADVICE).root
    numbers = {(name, variant): values for name, variants in content.items() for variant, values in variants.items()}
    records = {}
    for (experiment, variant), values in numbers.items():
        with contextlib.suppress(UserError):  # no record, or one of another version
            record = read_record(VariantRecord, file.parent / experiment / variant / "metrics.json", "", "")
            if record.values == values:
                records[experiment, variant] = record
    return Side(numbers, records)


def origin(record: VariantRecord) -> dict[str, str]:
    """The facts in which two records may differ, in words."""
    return {
        "data": record.data[:12],
        "extractor": extractor_of(record),
        "chain": chain_of(record),
        "configuration": record.configuration[:12],
        "commit": " ".join(name[:12] for name in record.commit),
        "changed": str(record.changed).lower(),
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "seeds": ", ".join(str(run.seed) for run in record.runs),
    }


def _variants(here: Side, there: Side) -> list[tuple[str, str]]:
    """(experiment, variant) of either side, experiment by experiment."""
    found = dict.fromkeys([*here.numbers, *there.numbers])
    order = list(dict.fromkeys(experiment for experiment, _ in found))
    return sorted(found, key=lambda key: order.index(key[0]))


def pairs(here: Side, there: Side) -> list[Pair]:
    """All metrics of all variants of either side, without floors."""
    found = []
    for key in _variants(here, there):
        ours, theirs = (side.numbers.get(key, {}) for side in (here, there))
        records = here.records.get(key), there.records.get(key)
        for name in dict.fromkeys([*ours, *theirs]):
            if metric(name).shown != "floor":
                one, other = (record.metrics.get(name) if record else None for record in records)
                why = obstacle(name, *records)
                found.append(Pair(*key, name, ours.get(name), theirs.get(name), (one, other), why))
    return found


def obstacle(name: str, one: VariantRecord | None, other: VariantRecord | None) -> str:
    """Why values of two records are not comparable; empty if they are."""
    if one is None or other is None:
        return ""
    if one.data != other.data:
        return "not comparable: other data"
    differs = metric(name).uses_extractor and one.extractor != other.extractor
    return "not comparable: another extractor" if differs else ""


def differences(here: Side, there: Side) -> dict[str, list[str]]:
    """Experiment → differences of its variants' origins, one line each."""
    found: dict[str, list[str]] = {}
    for key in _variants(here, there):
        lines, variant = found.setdefault(key[0], []), key[1]
        sides = {"here": here, "there": there}
        known = [place for place, side in sides.items() if key in side.numbers]
        unknown = [place for place, side in sides.items() if key not in side.records]
        if len(known) == 1:
            lines.append(f"{variant}: only {known[0]}")
        elif unknown:
            where = f"origin unknown {' and '.join(unknown)}"
            lines.append(
                f"{variant}: {where}, and whether the values are comparable: no record of them next to {BENCHMARKS}"
            )
        else:
            ours, theirs = origin(here.records[key]), origin(there.records[key])
            differing = [name for name in ours if ours[name] != theirs[name]]
            lines += [f"{variant}, {name}: {ours[name]} here, {theirs[name]} there" for name in differing]
    return found


def comparison_markdown(here: Side, there: Side, names: tuple[str, str]) -> str:
    """The comparison as Markdown.

    Args:
        names: the two paths, as typed.
    """
    legend = (
        f"Here: {names[0]}. There: {names[1]}. Difference: there minus here, and in units of its uncertainty "
        "√(a² + b²). a and b are the standard deviations over the seeds, or the half-widths of the 95 % intervals of "
        "one seed each. Values on other data, or of another extractor, have no difference."
    )
    text = ["# Comparison", "", legend, ""]
    found, origins = pairs(here, there), differences(here, there)
    for experiment, lines in origins.items():
        rows = [pair.words() for pair in found if pair.experiment == experiment]
        header = ["variant", "metric", "here", "there", "difference", "that is", "remark"]
        text += [f"## {experiment}", "", *grid(header, rows), ""]
        if lines:
            text += ["What differs in where they come from:", "", *(f"- {line}" for line in lines), ""]
        else:
            text += ["Both come from the same origin.", ""]
    return "\n".join(text)


def run(results: Path, other: Path) -> None:
    """Print the comparison, and write comparison.md and comparison.csv under `results`.

    Args:
        results, other: folders of results; `other` may be a benchmarks.json.

    Raises:
        UserError: one of them is missing or damaged.
    """
    here, there = read_side(results), read_side(other)
    text = comparison_markdown(here, there, (str(results), str(other)))
    frame = pd.DataFrame([pair.cells() for pair in pairs(here, there)], columns=COMPARISON_COLUMNS)
    csv = frame.to_csv(index=False, lineterminator="\n")
    for name, content in (("comparison.md", text), ("comparison.csv", csv)):
        with writing(results / name) as stream:
            stream.write(content.encode())
    print(text, end="")
