"""The results of an experiment, mirrored to MLflow: one parent run, the runs of its stages under it.

The only module that imports MLflow. Stages write their files first and know nothing of this; it reads what is there,
writes what is new, and keeps its place in results/<experiment>/tracking.json, so that it can be run again at any time.
MLflow is never an input: where it is missing or fails, one line says so and nothing else happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaebm.config import UserError, fingerprint
from vaebm.settings import read_experiment, read_yaml

DATABASE = "mlflow.db"
"""Where bare `mlflow ui` in the same folder looks, as sqlite:///mlflow.db; MLFLOW_TRACKING_URI is respected."""

ARTIFACTS = "mlartifacts"
NAME = "vaebm"
"""Name of the MLflow experiment that holds the runs."""

METRICS_PER_CALL, PARAMETERS_PER_CALL = 900, 90
"""Below MLflow's limits of 1000 and 100; one call for many is far cheaper than many calls."""

TABLE = ("benchmarks.csv", "benchmarks.md", "benchmarks.json", "report.html")

Place = dict[str, Any]
"""What of one run stands in MLflow already: its id, lines of the history, figures, tags, hashes of files."""


@dataclass
class Stage:
    """What there is to mirror of one stage run, or of the whole experiment."""

    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    files: dict[str, list[Path]] = field(default_factory=dict)

    def continues(self, place: Place) -> bool:
        """Whether what stands in MLflow is the beginning of this, and not of a run with other settings or other numbers."""
        lines = self.history[: place["lines"]]
        same_figures = not place["figures"] or place["figures"] == self.figures
        return place["parameters"] == fingerprint(self.parameters) and place["history"] == fingerprint(lines) and same_figures


def run(results: Path) -> None:
    """Mirror results/<experiment> to MLflow; what is there already is not written twice.

    Raises:
        UserError: there is no such folder. Whatever goes wrong with MLflow is a warning.
    """
    if not results.is_dir():
        raise UserError(f"{results}: expected the results of an experiment, found no folder")
    kept = _read_place(results / "tracking.json")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE}"
    try:
        with _alone():
            mirror = _Mirror(uri, results, kept)
            mirror.experiment()
            for stage in stages(results):
                mirror.stage(stage)
    except Exception as error:  # whatever it is, the results do not depend on it
        reason = str(error).strip().splitlines()
        problem = f"{type(error).__name__}: {reason[0]}" if reason else type(error).__name__
        _write_place(results / "tracking.json", {**_read_place(results / "tracking.json"), "status": f"not mirrored: {problem}"})
        print(f"warning: {results} was not mirrored to MLflow ({problem}); `vaebm track {results}` does it later", flush=True)
    else:
        print(f"{results}: {len(mirror.place['stages'])} stage runs mirrored to {uri}")


# ------------------------------------------------------------------------------------------------------ what there is
def stages(results: Path) -> list[Stage]:
    """Every stage run that has something to show, in the order in which they ran."""
    trained = [*results.glob("classifier/history.jsonl"), *sorted(results.glob("*/seed*/history.jsonl"))]
    evaluated = sorted(results.glob("*/seed*/evaluation/metrics.json"))
    return [_training(path.parent) for path in trained] + [_evaluation(path.parent) for path in evaluated]


def _training(folder: Path) -> Stage:
    """A run of `classifier`, `nvae` or `ebm`; before its training.json is there it is under way, or was stopped."""
    stage = next(stage for stage in ("classifier", "nvae", "ebm") if (folder / f"{stage}.yaml").is_file())
    settings = read_yaml(folder / f"{stage}.yaml")
    facts = _read_json(folder / "training.json") if (folder / "training.json").is_file() else {"status": "unfinished"}
    variant = folder.parent.name if stage == "ebm" else ""
    return Stage(
        " ".join(filter(None, (stage, variant, f"seed{settings['seed']}"))),
        flat(settings[stage]),
        _tags(stage, variant, settings, facts),
        (folder / "history.jsonl").read_text().splitlines(),
        {f"training/{name}": float(value) for name, value in facts.items() if type(value) in (int, float) and name != "seed"},
        {"model": sorted(folder.glob("model.pt")), "pictures": sorted(folder.glob("pictures/*.png"))},
    )


def _evaluation(folder: Path) -> Stage:
    """The figures of one variant with one seed; the settings of its samples are parameters beside those of the evaluation."""
    run_folder = folder.parent
    settings, sampling = read_yaml(folder / "evaluation.yaml"), read_yaml(run_folder / "samples" / "samples.yaml")
    facts = _read_json(folder / "metrics.json")
    figures = {name: float(figure["value"]) for name, figure in facts["metrics"].items()}
    return Stage(
        f"evaluation {run_folder.parent.name} {run_folder.name}",
        flat({"evaluation": settings["evaluation"], "samples": sampling["samples"]}),
        _tags("evaluation", run_folder.parent.name, {**settings, **sampling}, {"status": "finished", **facts}),
        figures=figures,
        files={"pictures": sorted(folder.glob("pictures/*.png")), "figures": [folder / "metrics.json"]},
    )


def whole(results: Path) -> Stage:
    """The experiment: the table's figures, the table and the report."""
    name, table = results.name, results.parent / "benchmarks.json"
    variants = _read_json(table).get(name, {}) if table.is_file() else {}
    tags = {"stage": "experiment", "experiment": name, "status": "finished" if variants else "unfinished"}
    settings = Path("config", "experiments", f"{name}.yaml")
    if settings.is_file():
        tags["configuration"] = read_experiment(settings).hash()
    for path in sorted(results.glob("*/metrics.json")):
        facts = _read_json(path)
        tags |= {"data": str(facts["data"]), "commit": " ".join(facts["commit"]), "changed": str(facts["changed"]).lower()}
        tags["seeds"] = " ".join(str(one["seed"]) for one in facts["runs"])
    figures = {f"{variant}/{metric}": float(value) for variant, metrics in variants.items() for metric, value in metrics.items() if value is not None}
    files = [results.parent / file for file in TABLE if (results.parent / file).is_file()]
    return Stage(name, tags=tags, figures=figures, files={"": files} if variants else {})


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow's parameters: network.channels → "32"."""
    parameters: dict[str, str] = {}
    for name, value in settings.items():
        parameters |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
    return parameters


def _tags(stage: str, variant: str, settings: dict[str, Any], facts: dict[str, Any]) -> dict[str, str]:
    tags = {"stage": stage, "seed": str(settings["seed"]), "configuration": fingerprint(settings)}
    if variant:
        tags["variant"] = variant
    # booleans as JSON writes them, like the table
    commits = facts.get("commit")
    facts = facts | {"commit": " ".join(commits)} if isinstance(commits, list) else facts
    return tags | {name: str(facts[name]).lower() for name in ("status", "data", "commit", "changed") if name in facts}


# ------------------------------------------------------------------------------------------------------------- MLflow
class _Mirror:
    """An open connection to MLflow, and the place that was kept of one experiment's results."""

    def __init__(self, uri: str, results: Path, kept: Place):
        # a tracking server that does not answer costs seconds, not MLflow's default of minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow.tracking import MlflowClient

        for noisy in ("alembic", "mlflow"):  # after the import, which sets its own levels
            logging.getLogger(noisy).setLevel(logging.ERROR)
        self.results = results
        self.client = MlflowClient(tracking_uri=uri)
        self.home = self._home(uri)
        self.place: Place = {"status": "mirrored", "uri": uri, "mlflow": importlib.metadata.version("mlflow"), "run": None, "stages": {}}
        if kept.get("uri") == uri:
            self.place |= {name: kept[name] for name in ("run", "whole", "stages") if name in kept}

    def _home(self, uri: str) -> str:
        """Id of the MLflow experiment; in a database of ours its files lie in this folder.

        MLflow keeps the absolute path of an experiment's files. In a folder that was moved or copied they would go to the
        old place, so there the old experiment gets another name, and everything is mirrored anew.
        """
        local = uri == f"sqlite:///{DATABASE}"
        location = Path(ARTIFACTS).absolute().as_uri() if local else None
        found = self.client.get_experiment_by_name(NAME)
        if found is not None and (location is None or found.artifact_location == location):
            return str(found.experiment_id)
        if found is not None:
            self.client.rename_experiment(found.experiment_id, f"{NAME}, files in {found.artifact_location}, {found.experiment_id}")
        return str(self.client.create_experiment(NAME, artifact_location=location))

    def experiment(self) -> None:
        """The parent run."""
        stage = whole(self.results)
        if not self._exists(self.place["run"]):
            self.place["run"] = self._create(stage.name, {})
            self.place |= {"whole": _nothing(self.place["run"], stage), "stages": {}}
            self._save()
        self._bring_up_to_date(self.place["whole"], stage)

    def stage(self, stage: Stage) -> None:
        """A run under it; what has other settings or other numbers than before becomes a new one."""
        place = self.place["stages"].get(stage.name)
        exists = place is not None and self._exists(place["run"])
        if exists and not stage.continues(place):
            self.client.set_tag(place["run"], "status", "superseded")
        if not exists or not stage.continues(place):
            tags = {"mlflow.parentRunId": self.place["run"], "experiment": self.results.name}
            place = _nothing(self._create(stage.name, tags), stage)
            self._log_parameters(place["run"], stage.parameters)
            self.place["stages"][stage.name] = place
            self._save()
        self._bring_up_to_date(place, stage)

    def _bring_up_to_date(self, place: Place, stage: Stage) -> None:
        from mlflow.entities import Metric, RunTag

        run, now = place["run"], int(time.time() * 1000)
        tags = {name: value for name, value in stage.tags.items() if place["tags"].get(name) != value}
        if tags:
            self.client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])
            place["tags"] = stage.tags
        self._log_history(place, stage, now)
        figures = {name: value for name, value in stage.figures.items() if place["figures"].get(name) != value}
        if figures:
            self.client.log_batch(run, metrics=[Metric(_key(name), value, now, 0) for name, value in figures.items()])
            place["figures"] = stage.figures
            self._save()
        for folder, files in stage.files.items():
            for file in files:
                key, content = f"{folder}/{file.name}", hashlib.sha256(file.read_bytes()).hexdigest()
                if place["files"].get(key) != content:
                    self.client.log_artifact(run, str(file), folder or None)
                    place["files"][key] = content
        if stage.tags.get("status") != "unfinished" and not place["ended"]:
            self.client.set_terminated(run, "FINISHED" if stage.tags.get("status") == "finished" else "FAILED")
            place["ended"] = True
        self._save()

    def _log_history(self, place: Place, stage: Stage, now: int) -> None:
        from mlflow.entities import Metric

        while place["lines"] < len(stage.history):
            batch: list[Any] = []
            upto = place["lines"]
            while upto < len(stage.history) and len(batch) < METRICS_PER_CALL:
                record = json.loads(stage.history[upto])
                step = int(record.pop("step"))
                batch += [Metric(_key(name), float(value), now, step) for name, value in record.items() if isinstance(value, int | float)]
                upto += 1
            self.client.log_batch(place["run"], metrics=batch)
            place |= {"lines": upto, "history": fingerprint(stage.history[:upto])}
            self._save()

    def _log_parameters(self, run: str, parameters: dict[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(name, value) for name, value in parameters.items()]
        for first in range(0, len(entities), PARAMETERS_PER_CALL):
            self.client.log_batch(run, params=entities[first : first + PARAMETERS_PER_CALL])

    def _create(self, name: str, tags: dict[str, str]) -> str:
        return str(self.client.create_run(self.home, run_name=name, tags=tags).info.run_id)

    def _exists(self, run: str | None) -> bool:
        """Whether a run is still there, in this experiment and not deleted."""
        from mlflow.exceptions import MlflowException

        if run is None:
            return False
        try:
            info = self.client.get_run(run).info
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return info.lifecycle_stage == "active" and info.experiment_id == self.home

    def _save(self) -> None:
        _write_place(self.results / "tracking.json", self.place)


def _nothing(run: str, stage: Stage) -> Place:
    """The place of a run that holds nothing but its parameters."""
    parameters = fingerprint(stage.parameters)
    return {"run": run, "parameters": parameters, "lines": 0, "history": fingerprint([]), "figures": {}, "tags": {}, "files": {}, "ended": False}


def _key(name: str) -> str:
    """A name that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two at once on a database that is not there yet would both create it, and one would fail."""
    with open(f"{DATABASE}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _read_place(path: Path) -> Place:
    """What was kept; nothing where the file is missing or damaged, then everything is mirrored anew."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_place(path: Path, place: Place) -> None:
    """Whole or not at all (without `vaebm.checkpoint`, which would load torch for this)."""
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(place, indent=2) + "\n")
    temporary.replace(path)
