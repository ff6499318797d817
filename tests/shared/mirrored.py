"""What MLflow contains of a project."""

from __future__ import annotations

import json

from mlflow.tracking import MlflowClient

TRACK = ("track", "results/tiny")


class Mirrored:
    """What MLflow holds of a project: a client, the parent run `tiny`, and name → run under it."""

    def __init__(self, project):
        self.client = MlflowClient(tracking_uri=f"sqlite:///{project.folder / 'mlflow.db'}")
        home = self.client.get_experiment_by_name("vaebm").experiment_id
        self.stages = {run.info.run_name: run for run in self.client.search_runs([home])}
        self.parent = self.stages.pop("tiny")

    def curve(self, stage: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) of every point of a metric."""
        return [
            (point.step, point.value)
            for point in self.client.get_metric_history(self.stages[stage].info.run_id, metric)
        ]

    def artifacts(self, run, folder: str = "") -> set[str]:
        """Paths of the files of a run."""
        found = set()
        for entry in self.client.list_artifacts(run.info.run_id, folder or None):
            found |= self.artifacts(run, entry.path) if entry.is_dir else {entry.path}
        return found

    def versions(self, model: str) -> list:
        """Versions of a registered model."""
        return self.client.search_model_versions(f"name = '{model}'")


def place(project) -> dict:
    """What was kept in tracking.json."""
    return json.loads((project.folder / "results" / "tiny" / "tracking.json").read_text())
