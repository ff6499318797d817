"""Comparison of two folders of results: metrics, and their origins."""

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

    numbers: dict[str, dict[str, dict[str, float]]]
    """Experiment → variant → metric → number."""
    records: dict[tuple[str, str], VariantRecord]
    """(experiment, variant) → the record of the numbers, if available."""


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
        counts = ""
        if one and other and one.samples != other.samples:
            counts = f"{one.samples:,} and {other.samples:,} images"
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
    numbers = read_record(Numbers, file, "experiment → variant → metric → number", ADVICE).root
    records = {}
    for experiment, variants in numbers.items():
        for variant, values in variants.items():
            record = _record(file.parent / experiment / variant / "metrics.json")
            if record and record.values == values:
                records[experiment, variant] = record
    return Side(numbers, records)


def _record(path: Path) -> VariantRecord | None:
    """A record over the seeds in the current format, or None."""
    try:
        return read_record(VariantRecord, path, "", "")
    except UserError:
        return None


def origin(record: VariantRecord) -> dict[str, str]:
    """The facts in which two records may differ, in words."""
    commits = " ".join(name[:12] for name in record.commit)
    return {
        "data": record.data[:12],
        "extractor": extractor_of(record),
        "chain": chain_of(record),
        "configuration": record.configuration[:12],
        "commit": commits,
        "changed": str(record.changed).lower(),
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "seeds": ", ".join(str(run.seed) for run in record.runs),
    }


def pairs(here: Side, there: Side) -> list[Pair]:
    """All metrics of all variants of either side, without floors."""
    found = []
    for experiment in dict.fromkeys([*here.numbers, *there.numbers]):
        ours, theirs = here.numbers.get(experiment, {}), there.numbers.get(experiment, {})
        for variant in dict.fromkeys([*ours, *theirs]):
            records = [side.records.get((experiment, variant)) for side in (here, there)]
            for name in dict.fromkeys([*ours.get(variant, {}), *theirs.get(variant, {})]):
                if metric(name).shown == "floor":
                    continue
                values = [numbers.get(variant, {}).get(name) for numbers in (ours, theirs)]
                one, other = (record.metrics.get(name) if record else None for record in records)
                why = obstacle(name, *records)
                found.append(Pair(experiment, variant, name, values[0], values[1], (one, other), why))
    return found


def obstacle(name: str, one: VariantRecord | None, other: VariantRecord | None) -> str:
    """Why values of two records are not comparable; empty if they are."""
    if one is None or other is None:
        return ""
    if one.data != other.data:
        return "not comparable: other data"
    if metric(name).uses_extractor and one.extractor != other.extractor:
        return "not comparable: another extractor"
    return ""


def differences(here: Side, there: Side) -> dict[str, list[str]]:
    """Experiment → differences of its variants' origins, one line each."""
    found: dict[str, list[str]] = {}
    for experiment in dict.fromkeys([*here.numbers, *there.numbers]):
        lines = found.setdefault(experiment, [])
        for variant in dict.fromkeys([*here.numbers.get(experiment, {}), *there.numbers.get(experiment, {})]):
            sides = [side.numbers.get(experiment, {}).get(variant) for side in (here, there)]
            if None in sides:
                lines.append(f"{variant}: only {'there' if sides[0] is None else 'here'}")
                continue
            records = [side.records.get((experiment, variant)) for side in (here, there)]
            if unknown := [place for place, record in zip(("here", "there"), records, strict=True) if record is None]:
                where = f"origin unknown {' and '.join(unknown)}"
                lines.append(
                    f"{variant}: {where}, whether the figures are comparable too: no record of them beside {BENCHMARKS}"
                )
                continue
            ours, theirs = (origin(record) for record in records if record is not None)
            lines += [
                f"{variant}, {name}: {ours[name]} here, {theirs[name]} there"
                for name in ours
                if ours[name] != theirs[name]
            ]
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
