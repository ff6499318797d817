"""The typed records: files as they were, byte for byte, and every wrong value is one line with file and key."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from records import RECORD

from vaebm.evaluation.inputs import _training
from vaebm.records.files import METRICS_RECORD, AnotherVersion, dump, read_record, write_record
from vaebm.records.results import Numbers, RunRecord, ShardRecord, TrackingRecord, VariantRecord
from vaebm.records.training import ClassifierRecord, TrainingRecord
from vaebm.system.errors import UserError

EARLIER = Path(__file__).parents[1] / "workflow" / "data" / "tiny.tar.xz"
KINDS: dict[str, type[BaseModel]] = {
    "*/*/classifier/training.json": ClassifierRecord,
    "*/*/*/seed*/training.json": TrainingRecord,
    "*/*/*/seed*/samples/shard-*.json": ShardRecord,
    "*/*/*/seed*/evaluation/metrics.json": RunRecord,
    "*/*/*/metrics.json": VariantRecord,
    "*/*/tracking.json": TrackingRecord,
    "*/benchmarks.json": Numbers,
}
"""Pattern of a file of results → its record."""

Change = Callable[[dict[str, Any]], object]


def test_earlier_files_are_written_as_they_were_read(tmp_path: Path) -> None:
    """All JSON files of results of the first version."""
    shutil.unpack_archive(EARLIER, tmp_path)
    seen = set()
    for pattern, kind in KINDS.items():
        for path in (paths := list(tmp_path.glob(pattern))):
            write_record(tmp_path / "again.json", read_record(kind, path, "a record", "no"))
            assert (tmp_path / "again.json").read_bytes() == path.read_bytes(), path
        assert paths, pattern
        seen |= set(paths)
    assert seen == set((tmp_path / "results").rglob("*.json"))
    known = json.loads((tmp_path / "results" / "tiny" / "vaebm" / "seed0" / "training.json").read_text())
    model = tmp_path / "results" / "tiny" / "vaebm" / "seed0" / "model.pt"
    trained, _ = _training(model, known["model"], known["data"])
    for other in ((known["model"], "other"), ("other", known["data"])):
        with pytest.raises(UserError, match="model.pt: expected .* of training.json, found other; train again"):
            _training(model, *other)
    assert dump(trained) == {key: value for key, value in known.items() if key not in ("settings", "data")}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda run: run["metrics"]["FD-classifier"].update(value=float("nan")),
            "metrics.FD-classifier.value: Input should be a finite number, found nan",
        ),
        (
            lambda run: run["metrics"]["FD-classifier"].update(value="40.0"),
            "metrics.FD-classifier.value: Input should be a valid number, found '40.0'",
        ),
        (lambda run: run.update(seed=0.5), "seed: Input should be a valid integer"),
        (lambda run: run.update(users="no"), "users: Input should be a valid boolean, found 'no'"),
        (
            lambda run: run["metrics"]["FD-classifier"].update(interval=[1.0]),
            "metrics.FD-classifier.interval: List should have at least 2 items",
        ),
        (
            lambda run: run["metrics"].update(FID2=run["metrics"]["FD-classifier"]),
            "metrics.FID2.[key]: expected a metric of docs/reference/metrics.md, found 'FID2'",
        ),
        (lambda run: run.update(experiment="../digits"), "experiment: String should match pattern '^["),
        (lambda run: run.update(variant=".."), "variant: String should match pattern '^["),
        (lambda run: run.update(variant="a/b"), "variant: String should match pattern '^["),
        (lambda run: run.update(metrics=[]), "metrics: Input should be an object"),
        (
            lambda run: run.update(steps={"counts": [0], "FD-x": [1.0], "energy": [0.0], "samples": 9}),
            "steps.metric: expected a metric of docs/reference/metrics.md, found 'FD-x'",
        ),
    ],
)
def test_wrong_value_is_one_line_with_file_and_key(tmp_path: Path, change: Change, line: str) -> None:
    content, path = copy.deepcopy(RECORD), tmp_path / "metrics.json"
    path.write_text(json.dumps(content))
    assert read_record(RunRecord, path, *METRICS_RECORD).metrics["FD-classifier"].value == 40.0
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as told:
        read_record(RunRecord, path, *METRICS_RECORD)
    assert str(told.value).startswith(f"{path}: {line}") and "\n" not in str(told.value)
    assert not isinstance(told.value, AnotherVersion)


def test_other_keys_are_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(RECORD | {"added": 1}))
    with pytest.raises(AnotherVersion, match="metrics.json: added: unknown key; keys that exist: experiment, "):
        read_record(RunRecord, path, *METRICS_RECORD)
    path.write_text(json.dumps({key: value for key, value in RECORD.items() if key not in ("users", "real")}))
    with pytest.raises(AnotherVersion, match="expected the figures of a run, found none of its real, users: remove"):
        read_record(RunRecord, path, *METRICS_RECORD)


def test_numbers_of_other_places_are_refused(tmp_path: Path) -> None:
    """They become paths of records."""
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps({"digits": {"../other": {"FID": 1.0}}}))
    with pytest.raises(UserError, match=r"benchmarks.json: digits\.\.\./other\.\[key\]: String .* found '\.\./other'"):
        read_record(Numbers, path, "numbers", "no")
