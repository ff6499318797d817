"""Reading and writing of the JSON files of results; every error is one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vaebm.config.yaml_files import problem_line
from vaebm.records.results import DetectionRecord, RunRecord, TrackingRecord
from vaebm.system.errors import UserError
from vaebm.system.files import write_json
from vaebm.system.provenance import merged

R = TypeVar("R", bound=BaseModel)

METRICS_RECORD = ("the figures of a run", "remove the file and run again", "`vaebm evaluation` makes it")
TRAINING_RECORD = ("the record of the training", "run the training again")
"""Description and advice, for errors of `read_record`."""


class AnotherVersion(UserError):
    """A record lacks keys, or has unknown ones: another version of the program wrote it."""


def read_record(model: type[R], path: Path, what: str, advice: str, absent: str = "") -> R:
    """Read a JSON file as a record.

    Args:
        what: description of the record, for errors.
        advice: what to do if the file is damaged.
        absent: what to do if there is no file; default: `advice`.

    Raises:
        UserError: there is no such file, or it is another record; the line names the first key at fault.
    """
    expected = f"{path}: expected {what}, found"
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError:
        raise UserError(f"{expected} no file; {absent or advice}") from None
    except ValidationError as error:
        problems = error.errors()
    kinds = {problem["type"] for problem in problems}
    lacking = sorted(".".join(map(str, problem["loc"])) for problem in problems if problem["type"] == "missing")
    if any(not problem["loc"] for problem in problems):
        raise UserError(f"{expected} a damaged file or one of another kind; {advice}")
    kind = AnotherVersion if kinds <= {"missing", "extra_forbidden"} else UserError
    if kinds == {"missing"}:
        raise kind(f"{expected} none of its {', '.join(lacking)}: {advice}")
    first = next(problem for problem in problems if kind is AnotherVersion or problem["type"] != "missing")
    raise kind(f"{path}: {problem_line(model, first)}; {advice}")


def read_run(path: Path) -> RunRecord:
    """Read metrics.json of a run, with ood.json next to it if a separate job measured those sets.

    Raises:
        UserError: a file is missing or damaged, or they are of different models.
    """
    run, file = read_record(RunRecord, path, *METRICS_RECORD), path.with_name("ood.json")
    if run.ood is not None or run.foreign is not None or not file.is_file():
        return run
    found = read_record(DetectionRecord, file, "out-of-distribution detection", "remove the file and run again")
    if found.data != run.data or not found.models.items() <= run.models.items():
        raise UserError(f"{file}: expected figures of the models and data of {path.name}, found others; run again")
    without = {name: reason for name, reason in run.without.items() if name not in found.metrics}
    update = {"ood": found.ood, "metrics": run.metrics | found.metrics, "without": without}
    return run.model_copy(update={**update, **merged([dict(run), dict(found)])})


@contextlib.contextmanager
def recording(path: Path, advice: str) -> Iterator[None]:
    """Within this context, a value that no record takes, such as NaN, is one line with the file, field and value.

    Raises:
        UserError: such a value.
    """
    try:
        yield
    except ValidationError as error:
        raise UserError(f"{path}: {error.title}.{problem_line(BaseModel, error.errors()[0])}; {advice}") from None


def write_record(path: Path, record: BaseModel) -> None:
    """Write a record, without the fields that were never set."""
    write_json(path, dump(record))


def dump(record: BaseModel, **choice: Any) -> dict[str, Any]:
    """Plain values of a record as in its file. `choice`: `include` or `exclude`, as in pydantic."""
    return record.model_dump(mode="json", by_alias=True, exclude_unset=True, **choice)


def read_tracking(results: Path) -> TrackingRecord:
    """Read results/<experiment>/tracking.json; empty if it is missing or damaged."""
    try:
        return read_record(TrackingRecord, results / "tracking.json", "the state of the mirror", "remove the file")
    except UserError:
        return TrackingRecord()
