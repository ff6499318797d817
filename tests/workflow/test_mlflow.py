"""MLflow mirrors what is there: everything once, and never in the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from mlflow.tracking import MlflowClient

TRACK = ("track", "results/tiny")


@pytest.fixture(scope="module")
def runs(tiny_run):
    """Client, parent run, and name → child run of the shared run."""
    client = MlflowClient(tracking_uri=f"sqlite:///{tiny_run.folder / 'mlflow.db'}")
    home = client.get_experiment_by_name("vaebm").experiment_id
    found = {run.info.run_name: run for run in client.search_runs([home])}
    return client, found.pop("tiny"), found


def place(project) -> dict:
    """What was kept in tracking.json."""
    return json.loads((project.folder / "results" / "tiny" / "tracking.json").read_text())


def artifacts(client: MlflowClient, run, folder: str = "") -> set[str]:
    """Paths of the files of a run."""
    found = set()
    for entry in client.list_artifacts(run.info.run_id, folder or None):
        found |= artifacts(client, run, entry.path) if entry.is_dir else {entry.path}
    return found


def test_one_parent_and_its_stages(runs):
    """Every stage run hangs under the experiment's, and all are done."""
    _, parent, stages = runs
    assert set(stages) == {"classifier seed0", "nvae seed0", "ebm vaebm seed0", "evaluation nvae seed0", "evaluation vaebm seed0"}
    assert {run.data.tags["mlflow.parentRunId"] for run in stages.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *stages.values())} == {"FINISHED"}


def test_parameters_are_the_settings(runs):
    """Nested settings with dots; those of the samples beside those of the evaluation."""
    stages = runs[2]
    assert stages["nvae seed0"].data.params["training.learning_rate"] == "0.01"
    assert stages["ebm vaebm seed0"].data.params["chain.steps"] == "2"
    chains = [stages[f"evaluation {variant} seed0"].data.params["samples.chain.steps"] for variant in ("nvae", "vaebm")]
    assert chains == ["0", "2"]


def test_curves_are_whole(runs, tiny_run):
    """Every line of the history, with its step."""
    client, _, stages = runs
    history = (tiny_run.folder / "results" / "tiny" / "nvae" / "seed0" / "history.jsonl").read_text().splitlines()
    points = client.get_metric_history(stages["nvae seed0"].info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(line["step"], line["loss"]) for line in map(json.loads, history)]


def test_figures_are_those_of_the_table(runs, tiny_run):
    """At the evaluation, and at the parent under the variant's name."""
    _, parent, stages = runs
    figures = json.loads((tiny_run.folder / "results" / "benchmarks.json").read_text())["tiny"]["vaebm"]
    assert stages["evaluation vaebm seed0"].data.metrics == pytest.approx(figures)
    assert parent.data.metrics["vaebm/FD-classifier"] == pytest.approx(figures["FD-classifier"])


def test_pictures_models_and_report_are_files(runs):
    """The files lie in the project folder, where bare `mlflow ui` serves them from."""
    client, parent, stages = runs
    assert artifacts(client, parent) >= {"benchmarks.csv", "benchmarks.md", "benchmarks.json", "report.html"}
    assert artifacts(client, stages["nvae seed0"]) >= {"model/model.pt", "pictures/curves.png", "pictures/samples.png"}
    assert artifacts(client, stages["ebm vaebm seed0"]) >= {"model/model.pt", "pictures/curves.png"}
    assert any(path.startswith("pictures/") for path in artifacts(client, stages["evaluation vaebm seed0"]))


def test_tags_say_where_it_comes_from(runs, tiny_run):
    """Data, commit, configuration, seed, stage, status."""
    _, parent, stages = runs
    commit = tiny_run.run("git", "rev-parse", "HEAD").strip()
    for run in (parent, stages["nvae seed0"], stages["ebm vaebm seed0"], stages["evaluation nvae seed0"], stages["evaluation vaebm seed0"]):
        tags = run.data.tags
        assert tags["commit"] == commit and tags["status"] == "finished"
        assert len(tags["data"]) == len(tags["configuration"]) == 64
    assert (stages["nvae seed0"].data.tags["seed"], stages["nvae seed0"].data.tags["stage"]) == ("0", "nvae")


def test_the_table_names_the_run(runs, tiny_run):
    """The parent run was there before the table."""
    assert runs[1].info.run_id in (tiny_run.folder / "results" / "benchmarks.csv").read_text()


def test_once_more_appends_nothing(runs, tiny_run, python):
    """Not a point, not a run, not a file."""
    client, parent, stages = runs

    def everything():
        points = [client.get_metric_history(run.info.run_id, name) for run in (parent, *stages.values()) for name in run.data.metrics]
        return len(client.search_runs([parent.info.experiment_id])), sum(map(len, points)), place(tiny_run)

    before = everything()
    tiny_run.run(*python(*TRACK))
    assert everything() == before


def test_what_is_new_is_appended_and_what_changed_is_a_new_run(finished, python):
    """In a copied folder everything is mirrored anew; then a longer history goes on in its run, other settings do not."""
    finished.run(*python(*TRACK))
    before = place(finished)["stages"]
    with (finished.folder / "results" / "tiny" / "nvae" / "seed0" / "history.jsonl").open("a") as file:
        file.write('{"step": 60, "loss": 1.0}\n')
    finished.edit("results/tiny/vaebm/seed0/samples/samples.yaml", "steps: 2", "steps: 3")
    finished.run(*python(*TRACK))
    after = place(finished)["stages"]
    client = MlflowClient(tracking_uri=f"sqlite:///{finished.folder / 'mlflow.db'}")
    assert {name for name in after if after[name]["run"] != before[name]["run"]} == {"evaluation vaebm seed0"}
    assert client.get_run(before["evaluation vaebm seed0"]["run"]).data.tags["status"] == "superseded"
    assert client.get_metric_history(after["nvae seed0"]["run"], "loss")[-1].step == 60
    assert client.get_experiment_by_name("vaebm").artifact_location == (finished.folder / "mlartifacts").as_uri()


def test_two_at_once_on_a_new_database(finished, python):
    """Neither fails, and both are there."""
    (finished.folder / "mlflow.db").unlink()
    shutil.copytree(finished.folder / "results" / "tiny", finished.folder / "results" / "other")
    commands = [python("track", f"results/{name}") for name in ("tiny", "other")]
    printed = [subprocess.Popen(command, cwd=finished.folder, env=finished.environment(), stdout=subprocess.PIPE, text=True) for command in commands]
    assert all("5 stage runs mirrored" in process.communicate()[0] for process in printed)


@pytest.mark.parametrize("failure", ["damaged", "absent"])
def test_failure_is_a_warning(finished, failure):
    """One line, status 0, and tracking.json says so; its place is kept."""
    hide = "import sys; sys.modules['mlflow'] = None; " if failure == "absent" else ""
    (finished.folder / "mlflow.db").write_bytes(b"no database")
    before = place(finished)
    printed = finished.run(sys.executable, "-c", f"{hide}from pathlib import Path; from vaebm.tracking import run; run(Path('results/tiny'))")
    warnings = [line for line in printed.splitlines() if line.startswith("warning: results/tiny was not mirrored to MLflow")]
    assert len(warnings) == 1 and "Traceback" not in printed
    after = place(finished)
    assert after.pop("status").startswith("not mirrored: ") and after == {name: value for name, value in before.items() if name != "status"}


def test_unknown_folder_is_one_line(clone, python):
    assert clone.run(*python("track", "results/digit"), fails=True) == "results/digit: expected the results of an experiment, found no folder\n"
