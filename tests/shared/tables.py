"""The table of a run, as far as another run of the same experiment has the same."""

import csv
from pathlib import Path

ELSEWHERE = ("commit", "changed", "tracking", "seconds")
"""Columns that depend on the place of a run."""


def table(results: Path) -> list[dict[str, str]]:
    """Lines of the table without the place of the run and without times."""
    with (results / "benchmarks.csv").open() as file:
        lines = [
            {column: cell for column, cell in line.items() if column not in ELSEWHERE} for line in csv.DictReader(file)
        ]
    times = [line for line in lines if line["metric"].startswith("seconds") and line["measured"]]
    assert len(times) == 2 and all(float(line["measured"]) > 0 for line in times)
    for line in times:
        line["measured"] = "a time"
    return lines
