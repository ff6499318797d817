"""The paper's tables, as in config/paper.yaml."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BeforeValidator, model_validator

from vaebm.config import Settings
from vaebm.config.yaml_files import read_yaml, validate
from vaebm.records.metrics import metric


class PublishedValue(NamedTuple):
    """A value of the paper, written [value, mark]."""

    value: float
    """As printed there."""
    mark: Literal["A", "B", "M"]
    """A: two independent sources or the authors' repository; B: one source; M: from memory, unverified."""


class Answer(NamedTuple):
    """The variant of ours that measures the same, written EXPERIMENT/VARIANT."""

    experiment: str
    """Name of an experiment file, which may not exist yet."""
    variant: str
    """Variant of that experiment."""


class PaperRow(Settings):
    """One row of a table: a model, or a benchmark's name."""

    model: str
    """As the table calls it."""
    answer: Annotated[
        Answer | None, BeforeValidator(lambda path: path.split("/") if isinstance(path, str) else path)
    ] = None
    """Our counterpart; none: a model of others."""
    note: str | None = None
    """Remark on the row."""
    figures: dict[str, PublishedValue]
    """Metric, by our name → the paper's value."""


class Table(Settings):
    """One table of the paper."""

    title: str
    """With its number."""
    note: str | None = None
    """Remark on the table."""
    metrics: list[str]
    """Columns, by our names."""
    rows: list[PaperRow]
    """In the paper's order."""

    @model_validator(mode="after")
    def _figures_have_columns(self) -> Self:
        for name in self.metrics:
            metric(name)
        for row in self.rows:
            for name in row.figures:
                if name not in self.metrics:
                    raise ValueError(f"{row.model}: figures: expected metrics among {self.metrics}, found {name!r}")
        return self


class Paper(Settings):
    """All tables."""

    tables: list[Table]


def read_paper(path: Path) -> Paper:
    """Read the paper's tables.

    Raises:
        UserError: the file is missing, no YAML, or holds something else.
    """
    return validate(Paper, read_yaml(path), str(path))
