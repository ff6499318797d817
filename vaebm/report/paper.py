"""The figures of the paper, row by row, as config/paper.yaml holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from vaebm.config import Settings
from vaebm.config.yaml_files import read_yaml, validate


class Figure(Settings):
    """One figure of the paper."""

    value: float
    """As printed there."""
    mark: Literal["A", "B", "M"]
    """A: seen in two independent sources or in the authors' repository; B: in one source; M: from memory, unverified."""


class Answer(Settings):
    """What of ours measures the same."""

    experiment: str
    """Name of an experiment file, which may not exist yet."""
    variant: str
    """Variant of that experiment."""


class Row(Settings):
    """One row of a table: a model, or a benchmark's name."""

    model: str
    """As the table calls it."""
    answer: Answer | None = None
    """What of ours measures the same; none: a model of others."""
    note: str | None = None
    """What has to be said about the row."""
    figures: dict[str, Figure]
    """Metric, by our name → the paper's figure."""


class Table(Settings):
    """One table of the paper."""

    title: str
    """With its number."""
    note: str | None = None
    """What has to be said about the table."""
    metrics: list[str]
    """Columns, by our names."""
    rows: list[Row]
    """In the paper's order."""

    @model_validator(mode="after")
    def _figures_have_columns(self) -> Table:
        for row in self.rows:
            for metric in row.figures:
                if metric not in self.metrics:
                    raise ValueError(f"{row.model}: figures: expected metrics among {self.metrics}, found {metric!r}")
        return self


class Paper(Settings):
    """Every table."""

    tables: list[Table]


def read_paper(path: Path) -> Paper:
    """The paper's figures.

    Raises:
        UserError: the file is missing, no YAML, or holds something else.
    """
    return validate(Paper, read_yaml(path), str(path))
