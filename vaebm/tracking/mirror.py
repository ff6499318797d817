"""Writes runs and registered models to MLflow."""

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vaebm.config import fingerprint
from vaebm.records.files import read_tracking, write_record
from vaebm.records.results import MirroredRun, TrackingRecord
from vaebm.system.errors import UserError
from vaebm.system.files import checksum
from vaebm.tracking.database import DATABASE, prepare_database, without_password
from vaebm.tracking.stages import RegisteredModel, StageRun, experiment_run

EXPERIMENT_NAME = "vaebm"
"""Name of the MLflow experiment of all runs."""

MINUTES = 10.0
"""Time for everything but uploads to a server, which may answer slowly."""

UPLOAD = 120
"""Seconds for an answer to an upload: MLflow's default."""

DIGEST = 36
"""MLflow's limit for the characters of a data set's digest."""

LINES_PER_SAVE = 100
"""Lines of a history that are logged before the state is saved."""

NEEDS = (
    "torch", "safetensors", "huggingface_hub", "jaxtyping", "numpy", "pydantic", "tqdm", "jinja2", "markupsafe",
    "pyyaml", "ruamel.yaml",
)  # fmt: skip
"""Requirements of a registered model, without its own code: the base install's."""


class Mirror:
    """A connection to the MLflow at `uri`, and the state of the mirror of `results`, results/<experiment>."""

    def __init__(self, uri: str, results: Path):
        # a server that does not answer costs seconds instead of MLflow's default of minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow.tracking import MlflowClient

        for noisy in ("alembic", "mlflow"):  # after the import, which sets the levels
            logging.getLogger(noisy).setLevel(logging.ERROR)
        if uri == f"sqlite:///{DATABASE}":
            prepare_database(Path(DATABASE))
        self.uri, self.results = uri, results
        shown = without_password(uri)
        self._end = time.monotonic() + (60.0 * MINUTES if uri.startswith("http") else float("inf"))
        self.origin = fingerprint([socket.gethostname(), str(results.absolute())])
        self.client = MlflowClient(tracking_uri=uri)
        self.home = self._home()
        version, kept = importlib.metadata.version("mlflow"), read_tracking(results)
        self.place = TrackingRecord(status="mirrored", uri=shown, mlflow=version, run=None, stages={}, models={})
        if kept.uri == shown and kept.whole is not None:
            self.place = kept.model_copy(update={"status": "mirrored", "mlflow": version})
        self._delete_orphans()

    def _delete_orphans(self) -> None:
        """Delete runs that a mirror created and was killed before it noted them."""
        known = {self.place.run, *(place.run for place in self.place.stages.values())}
        found = self.client.search_runs(
            [self.home], f"tags.results = '{self.origin}' and attributes.status = 'RUNNING'"
        )
        for run in found:
            if run.info.run_id not in known:
                self.client.delete_run(run.info.run_id)

    def _home(self) -> str:
        """Id of the MLflow experiment; for the local database its files are in this folder.

        MLflow stores the absolute path of an experiment's files. In a moved or copied folder the old experiment is
        renamed, and everything is mirrored again.
        """
        local = self.uri == f"sqlite:///{DATABASE}"
        location = Path("mlartifacts").absolute().as_uri() if local else None
        found = self.client.get_experiment_by_name(EXPERIMENT_NAME)
        if found is not None and found.lifecycle_stage == "deleted":
            raise UserError(
                f"MLflow: expected the experiment {EXPERIMENT_NAME!r}, found it deleted; "
                f"`mlflow experiments restore -x {found.experiment_id}` brings it back"
            )
        if found is not None and (location is None or found.artifact_location == location):
            return str(found.experiment_id)
        if found is not None:
            self.client.rename_experiment(
                found.experiment_id, f"{EXPERIMENT_NAME}, files in {found.artifact_location}, {found.experiment_id}"
            )
        made = _unless_there(self.client.create_experiment, EXPERIMENT_NAME, artifact_location=location)
        return str(made or self._home())

    @property
    def page(self) -> str:
        """Path of the training runs in MLflow's pages; empty without a server."""
        return f"/#/experiments/{self.home}/runs?workflowType=machine_learning" if self.uri.startswith("http") else ""

    def experiment(self) -> None:
        """Create or update the parent run."""
        stage = experiment_run(self.results)
        whole = self._existing(self.place.whole)
        if whole is None:
            whole = self._create(stage, {})
            self.place = self.place.model_copy(update={"run": whole.run, "stages": {}, "models": {}, "whole": whole})
            self._save()
        self._bring_up_to_date(whole, stage)

    def stage(self, stage: StageRun) -> None:
        """Create or update a child run; other settings or other numbers make a new run."""
        from mlflow.entities import Param

        place = self._existing(self.place.stages.get(stage.name))
        if place is not None and not stage.continues(place):
            self.client.update_run(place.run, name=f"{stage.name}, superseded")
            self.client.set_tag(place.run, "status", "superseded")
            if not place.ended:
                self.client.set_terminated(place.run, "KILLED")
            place = None
        if place is None:
            tags = {"mlflow.parentRunId": self.place.run or "", "experiment": self.results.name}
            place = self._create(stage, tags)
            self.client.log_batch(place.run, params=[Param(name, value) for name, value in stage.parameters.items()])
            self.place.stages[stage.name] = place
            self._save()
        self._bring_up_to_date(place, stage)

    def model(self, stage: StageRun) -> None:
        """Register a new version of the stage's model if its networks or its chain changed."""
        model = stage.model
        if model is not None and self.place.models.get(model.name) != model.hash:
            self._register(model, self.place.stages[stage.name].run)
            self.place.models[model.name] = model.hash
            self._save()

    def _register(self, model: RegisteredModel, run: str) -> None:
        """Log a model as a torch module with its code, from the run of its metrics, and register it."""
        import mlflow.pytorch
        import numpy as np
        from mlflow.models import Model as LoggedModel
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        from vaebm.model import VAEBM

        versions = self.client.search_model_versions(f"name = '{model.name}'")
        if any(version.run_id == run and version.tags.get("hash") == model.hash for version in versions):
            return  # by a mirror that was killed before it noted this
        models = {version.model_id for version in versions}
        same = f"name = '{model.name}' AND source_run_id = '{run}'"
        for left in self.client.search_logged_models([self.home], same):
            if left.model_id not in models:
                self.client.delete_logged_model(left.model_id)
        vaebm = VAEBM.from_results(model.folder)
        images, scores = (TensorSpec(np.dtype("float32"), (-1, *shape)) for shape in (vaebm.nvae.shape, ()))
        parameters = self.client.get_run(run).data.params
        logged = self.client.create_logged_model(
            self.home, name=model.name, source_run_id=run, tags=model.tags, params=parameters, model_type="vaebm"
        )
        mlflow.set_tracking_uri(self.uri)
        with self._uploading():
            LoggedModel.log(
                None,
                mlflow.pytorch,
                run_id=run,
                model_id=logged.model_id,
                pytorch_model=vaebm,
                serialization_format="pickle",  # a traced graph could not sample
                code_paths=[str(Path(__file__).parent.parent)],
                pip_requirements=[f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in NEEDS],
                signature=ModelSignature(Schema([images]), Schema([scores])),
            )
        _unless_there(self.client.create_registered_model, model.name)
        source, tags = f"models:/{logged.model_id}", model.tags | {"hash": model.hash}
        self.client.create_model_version(model.name, source, run, tags=tags, model_id=logged.model_id)

    def _bring_up_to_date(self, place: MirroredRun, stage: StageRun) -> None:
        from mlflow.entities import Metric, RunTag

        run, now = place.run, int(time.time() * 1000)
        self._log_data(place, stage)
        wanted = stage.tags | ({"mlflow.note.content": stage.note} if stage.note else {})
        tags = {name: value for name, value in wanted.items() if place.tags.get(name) != value}
        if tags:
            self.client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])
            place.tags = wanted
            self._save()
        ended = stage.ended or now  # a fixed time: MLflow drops points that a mirror logged before it was cut off
        self._log_history(place, stage, ended)
        figures = {name: value for name, value in stage.figures.items() if place.figures.get(name) != value}
        if figures:
            self.client.log_batch(run, [Metric(_key(name), value, now, 0) for name, value in figures.items()])
            place.figures = stage.figures
            self._save()
        if stage.curves and not place.curves:
            points = [(name, step, value) for name, curve in stage.curves.items() for step, value in curve]
            self.client.log_batch(run, [Metric(_key(name), value, ended, step) for name, step, value in points])
            place.curves = fingerprint(stage.curves)
            self._save()
        for folder, files in stage.files.items():
            for file in files:
                key, content = f"{folder}/{file.name}", checksum(file)
                if place.files.get(key) != content:
                    with self._uploading():
                        self.client.log_artifact(run, str(file), folder or None)
                    place.files[key] = content
                    self._save()
        if stage.tags.get("status") != "unfinished" and not place.ended:
            outcome = "FINISHED" if stage.tags.get("status") == "finished" else "FAILED"
            self.client.set_terminated(run, outcome, stage.ended)
            place.ended = True
        self._save()

    def _log_data(self, place: MirroredRun, stage: StageRun) -> None:
        """Log the data sets as inputs, with the hash of the manifest as digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        new = [one for one in stage.data if one.hash not in place.data]
        inputs = [
            DatasetInput(
                Dataset(
                    one.folder.name, one.hash[:DIGEST], "local", json.dumps({"uri": str(one.folder)}),
                    profile=json.dumps({"num_rows": one.images}),
                ),
                [InputTag("mlflow.data.context", one.context)],
            )
            for one in new
        ]  # fmt: skip
        if inputs:
            try:
                self.client.log_inputs(place.run, inputs)
            except MlflowException as error:
                if "constraint" not in str(error).lower():
                    raise
                self.client.log_inputs(place.run, inputs)  # another machine logged the same data set at the same time
            place.data += [one.hash for one in new]
            self._save()

    def _log_history(self, place: MirroredRun, stage: StageRun, now: int) -> None:
        from mlflow.entities import Metric

        for first in range(place.lines, len(stage.history), LINES_PER_SAVE):
            batch: list[Metric] = []
            for record in map(json.loads, stage.history[first : first + LINES_PER_SAVE]):
                step = int(record.pop("step"))
                numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
                batch += [Metric(_key(name), float(value), now, step) for name, value in numbers.items()]
            self.client.log_batch(place.run, batch)
            place.lines = min(first + LINES_PER_SAVE, len(stage.history))
            place.history = fingerprint(stage.history[: place.lines])
            self._save()

    def _create(self, stage: StageRun, tags: dict[str, str]) -> MirroredRun:
        """Create a run; its state is that of one that has only its parameters."""
        run = self.client.create_run(self.home, stage.began, tags | {"results": self.origin}, stage.name).info.run_id
        return MirroredRun(
            run=str(run), parameters=fingerprint(stage.parameters), lines=0, history=fingerprint([]),
            figures={}, curves="", tags={}, files={}, data=[], ended=False,
        )  # fmt: skip

    def _existing(self, place: MirroredRun | None) -> MirroredRun | None:
        """The state of a run; None: the run is not in this experiment, or deleted."""
        found = place and self.client.search_runs([self.home], f"attributes.run_id = '{place.run}'")
        return place if found else None

    @contextlib.contextmanager
    def _uploading(self) -> Iterator[None]:
        """Within this context a server may take long: a file is large, and it sends it to another store."""
        began, before = time.monotonic(), os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(int(before), UPLOAD))
        try:
            yield
        finally:
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before
            self._end += time.monotonic() - began

    def _save(self) -> None:
        """Save the state.

        Raises:
            UserError: the server is too slow.
        """
        write_record(self.results / "tracking.json", self.place)
        if time.monotonic() > self._end:
            raise UserError(
                f"{self.place.uri}: expected an end within {MINUTES:g} minutes, found a server that answers slowly; "
                f"`vaebm track {self.results}` continues"
            )


def _unless_there(create: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Result of `create`; None if it exists, perhaps since another machine made it at the same time."""
    from mlflow.exceptions import MlflowException

    try:
        return create(*arguments, **options)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return None


def _key(name: str) -> str:
    """Replace characters that MLflow does not allow."""
    return re.sub(r"[^\w\-. :/]", "_", name)
