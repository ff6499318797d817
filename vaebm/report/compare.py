"""Comparison of two folders of results: metrics, and their origins."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from vaebm.records.files import read_record
from vaebm.records.metrics import format_value, metric, number, with_direction
from vaebm.records.results import Numbers, VariantRecord
from vaebm.records.templates import render
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


class Pair(NamedTuple):
    """One metric of one variant on both sides."""

    cells: tuple[str | float | None, ...]
    """One value per column of `COMPARISON_COLUMNS`."""
    words: list[str]
    """Variant, metric, here, there, difference, how much that is, remark."""


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


def _pair(key: tuple[str, str], name: str, here: Side, there: Side) -> Pair:
    """The metric `name` of an (experiment, variant) on both sides."""
    ours, theirs = (side.numbers.get(key, {}).get(name) for side in (here, there))
    records = here.records.get(key), there.records.get(key)
    one, other = (record.metrics.get(name) if record else None for record in records)
    difference, comparable, remark = None, "false", obstacle(name, *records)
    if ours is not None and theirs is not None and not remark:
        difference, comparable = theirs - ours, "true" if one and other else "unknown"
    units, kind = (z_score(one, other) if one and other and not remark else None) or (None, None)
    remarks = [remark, "origin unknown" if comparable == "unknown" else ""]
    if one and other and one.samples != other.samples:
        remarks.append(f"{one.samples:,} and {other.samples:,} images")
    remark = "; ".join(filter(None, remarks))

    shown = [
        with_certainty(name, figure) if figure else "" if value is None else format_value(name, value)
        for figure, value in ((one, ours), (other, theirs))
    ]
    apart = "" if difference is None else number(difference, 3) if difference else "same"
    how_much = f"{units:+.1f} {'spreads' if kind == 'spread' else 'half-widths'}" if units else ""
    cells = (*key, name, ours, theirs, difference, kind, units, comparable, remark or None)
    return Pair(cells, [key[1], with_direction(name), *shown, apart, how_much, remark])


def obstacle(name: str, one: VariantRecord | None, other: VariantRecord | None) -> str:
    """Why values of two records are not comparable; empty if they are."""
    if one is None or other is None:
        return ""
    if one.data != other.data:
        return "not comparable: other data"
    differs = metric(name).uses_extractor and extractor_of(one, name) != extractor_of(other, name)
    return "not comparable: another extractor" if differs else ""


def differences(key: tuple[str, str], here: Side, there: Side) -> list[str]:
    """Differences in the origin of an (experiment, variant), one line each."""
    sides = {"here": here, "there": there}
    known = [place for place, side in sides.items() if key in side.numbers]
    unknown = [place for place, side in sides.items() if key not in side.records]
    if len(known) == 1:
        return [f"{key[1]}: only {known[0]}"]
    if unknown:
        where = " and ".join(unknown)
        reason = f"no record of them next to {BENCHMARKS}"
        return [f"{key[1]}: origin unknown {where}, and whether the values are comparable: {reason}"]
    ours, theirs = origin(here.records[key]), origin(there.records[key])
    return [f"{key[1]}, {name}: {ours[name]} here, {theirs[name]} there" for name in ours if ours[name] != theirs[name]]


def run(results: Path, other: Path) -> None:
    """Print the comparison of `results` with `other`, which may be a benchmarks.json; write comparison.md and .csv.

    The files lie under `results`.

    Raises:
        UserError: one of them is missing or damaged.
    """
    here, there = read_side(results), read_side(other)
    experiments: dict[str, tuple[list[Pair], list[str]]] = {}
    for key in dict.fromkeys([*here.numbers, *there.numbers]):
        pairs, lines = experiments.setdefault(key[0], ([], []))
        names = here.numbers.get(key, {}) | there.numbers.get(key, {})
        pairs += [_pair(key, name, here, there) for name in names if metric(name).shown != "floor"]
        lines += differences(key, here, there)
    text = render("report/comparison.md.j2", experiments=experiments, paths=(results, other), grid=grid)
    cells = [pair.cells for pairs, _ in experiments.values() for pair in pairs]
    csv = pd.DataFrame(cells, columns=COMPARISON_COLUMNS).to_csv(index=False, lineterminator="\n")
    for name, content in (("comparison.md", text), ("comparison.csv", csv)):
        with writing(results / name) as stream:
            stream.write(content.encode())
    print(text, end="")
