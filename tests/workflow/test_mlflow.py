"""MLflow mirrors all results once, under the names of the settings and of the table, and stops nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from vaebm.tracking.stages import StageRun
from vaebm.tracking.stages import stages as found_in

TRACK = ("track", "results/tiny")

GAN = """
seed: 0
wgan:
  network:
    channels: 8
    widths:
      - 1
    down:
      - 0
  iterations: 2
  batch: 16
"""


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


@pytest.fixture(scope="module")
def mirrored(tiny_run):
    """What the shared run left in MLflow."""
    return Mirrored(tiny_run)


def place(project) -> dict:
    """What was kept in tracking.json."""
    return json.loads((project.folder / "results" / "tiny" / "tracking.json").read_text())


def change(project, path: str, **values) -> None:
    """Replace keys of a JSON file of the experiment's results."""
    file = project.folder / "results" / "tiny" / path
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_one_parent_and_its_stages(mirrored):
    """Every stage run hangs under the experiment's, and all are done."""
    assert set(mirrored.stages) == {
        "classifier seed0",
        "nvae seed0",
        "ebm vaebm seed0",
        "evaluation nvae seed0",
        "evaluation vaebm seed0",
    }
    assert {run.data.tags["mlflow.parentRunId"] for run in mirrored.stages.values()} == {mirrored.parent.info.run_id}
    assert {run.info.status for run in (mirrored.parent, *mirrored.stages.values())} == {"FINISHED"}


def test_parameters_are_the_settings(mirrored):
    """Under their names in the experiment file; an evaluation has those of every stage that its figures depend on."""
    stages = mirrored.stages
    assert stages["nvae seed0"].data.params["nvae.training.learning_rate"] == "0.01"
    assert stages["ebm vaebm seed0"].data.params["ebm.chain.steps"] == "2"
    chains = [stages[f"evaluation {variant} seed0"].data.params["samples.chain.steps"] for variant in ("nvae", "vaebm")]
    assert chains == ["0", "2"]
    behind = stages["nvae seed0"].data.params | stages["ebm vaebm seed0"].data.params
    whole = stages["evaluation vaebm seed0"].data.params
    assert behind.items() <= whole.items()
    assert {name.split(".")[0] for name in whole} == {"nvae", "ebm", "samples", "evaluation"}


def test_evaluations_are_found_by_their_tags(mirrored):
    """What the page's search box takes: the figures of one variant, whichever experiment it belongs to."""
    home = mirrored.parent.info.experiment_id
    found = mirrored.client.search_runs(
        [home], "tags.stage = 'evaluation' and tags.variant = 'vaebm' and tags.experiment = 'tiny' and tags.seed = '0'"
    )
    assert [run.info.run_name for run in found] == ["evaluation vaebm seed0"]


def test_curves_are_whole(mirrored, tiny_run):
    """Every line of the history, with its step."""
    history = (tiny_run.folder / "results" / "tiny" / "nvae" / "seed0" / "history.jsonl").read_text().splitlines()
    assert mirrored.curve("nvae seed0", "loss") == [(line["step"], line["loss"]) for line in map(json.loads, history)]


def test_figures_are_those_of_the_table(mirrored, tiny_run):
    """Every one, by the same name at the evaluation, and at the parent after the variant's."""
    table = json.loads((tiny_run.folder / "results" / "benchmarks.json").read_text())["tiny"]
    assert mirrored.parent.data.metrics == pytest.approx(
        {f"{variant}/{name}": value for variant, figures in table.items() for name, value in figures.items()}
    )
    for variant, figures in table.items():
        metrics = mirrored.stages[f"evaluation {variant} seed0"].data.metrics
        assert {name: metrics[name] for name in figures} == pytest.approx(figures)


def test_the_training_of_the_energy_explains_itself(mirrored, tiny_run):
    """The candidates' distances, which was chosen, by which rule, and the chains' diagnostics, as in training.json."""
    facts = json.loads((tiny_run.folder / "results" / "tiny" / "vaebm" / "seed0" / "training.json").read_text())
    selection, run = facts["selection"], mirrored.stages["ebm vaebm seed0"]
    assert mirrored.curve("ebm vaebm seed0", "selection/candidates") == [
        (int(step), value) for step, value in selection["candidates"].items()
    ]
    assert run.data.metrics["selection/chosen"] == selection["chosen"]
    assert selection["rule"] in run.data.tags["mlflow.note.content"] and run.data.tags["guard"] == "quiet"
    steps = range(len(facts["diagnostics"]["energy"]))
    assert mirrored.curve("ebm vaebm seed0", "diagnostics/energy") == list(
        zip(steps, facts["diagnostics"]["energy"], strict=True)
    )
    assert mirrored.curve("ebm vaebm seed0", "diagnostics/acceptance") == list(
        zip(steps[1:], facts["diagnostics"]["acceptance"], strict=True)
    )


def test_a_run_lasts_as_long_as_its_training(mirrored, tiny_run):
    """Not as long as the mirroring; to the millisecond that MLflow counts in, twice rounded."""
    seconds = json.loads((tiny_run.folder / "results" / "tiny" / "nvae" / "seed0" / "training.json").read_text())[
        "seconds"
    ]
    info = mirrored.stages["nvae seed0"].info
    assert info.end_time - info.start_time == pytest.approx(1000 * seconds, abs=1)


def test_pictures_models_and_report_are_files(mirrored):
    """The files lie in the project folder, where bare `mlflow ui` serves them from."""
    stages = mirrored.stages
    assert mirrored.artifacts(mirrored.parent) >= {"benchmarks.csv", "benchmarks.md", "benchmarks.json", "report.html"}
    assert mirrored.artifacts(stages["nvae seed0"]) >= {
        "model/model.safetensors",
        "pictures/curves.png",
        "pictures/samples.png",
        "training.json",
    }
    assert mirrored.artifacts(stages["ebm vaebm seed0"]) >= {"model/model.safetensors", "pictures/curves.png"}
    assert any(path.startswith("pictures/") for path in mirrored.artifacts(stages["evaluation vaebm seed0"]))


def test_tags_say_where_it_comes_from(mirrored, tiny_run):
    """Data, commit, configuration, seed, stage, status."""
    stages = mirrored.stages
    commit = tiny_run.run("git", "rev-parse", "HEAD").strip()
    for run in (
        mirrored.parent,
        stages["nvae seed0"],
        stages["ebm vaebm seed0"],
        stages["evaluation nvae seed0"],
        stages["evaluation vaebm seed0"],
    ):
        tags = run.data.tags
        assert tags["commit"] == commit and tags["status"] == "finished"
        assert len(tags["data"]) == len(tags["configuration"]) == 64
    tags = stages["nvae seed0"].data.tags
    assert (tags["experiment"], tags["variant"], tags["seed"], tags["stage"]) == ("tiny", "nvae", "0", "nvae")


def test_the_table_names_the_run(mirrored, tiny_run):
    """The parent run was there before the table."""
    assert mirrored.parent.info.run_id in (tiny_run.folder / "results" / "benchmarks.csv").read_text()


@pytest.mark.parametrize("place", ["models:/vaebm-tiny-vaebm/latest", "runs:/RUN/vaebm-tiny-vaebm"])
def test_a_registered_model_samples_in_a_fresh_process(mirrored, tiny_run, tmp_path, place):
    """It brings its program along, and draws and scores the same images as the files do."""
    (version,) = mirrored.versions("vaebm-tiny-vaebm")
    assert version.run_id == mirrored.stages["evaluation vaebm seed0"].info.run_id
    loaded = f"""if True:
        import mlflow, torch
        mlflow.set_tracking_uri("sqlite:///{tiny_run.folder / "mlflow.db"}")
        model = mlflow.pytorch.load_model("{place.replace("RUN", version.run_id)}")
        assert isinstance(model, torch.nn.Module)
        images = model.sample(4, seed=1)
        scores = model(images)
    """
    read = f"""if True:
        import torch
        from vaebm import VAEBM
        model = VAEBM.from_results("{tiny_run.folder / "results" / "tiny" / "vaebm"}")
        images = model.sample(4, seed=1)
        scores = model.score(images)
    """
    found = []
    for name, program, where in (("loaded", loaded, tmp_path), ("read", read, tiny_run.folder)):
        report = f"import sys; torch.save([images, scores, sys.modules['vaebm'].__file__], {str(tmp_path / name)!r})"
        subprocess.run(
            [sys.executable, "-c", f"{program}\n{report}"], cwd=where, env=tiny_run.environment(), check=True
        )
        found.append(torch.load(tmp_path / name))
    (images, scores, program), (expected_images, expected_scores, _) = found
    assert Path(program).parts[-3:] == ("code", "vaebm", "__init__.py")
    assert torch.equal(images, expected_images) and torch.equal(scores, expected_scores)


def test_once_more_appends_nothing(mirrored, tiny_run, python):
    """Not a point, not a run, not a file, not a version of a model."""

    def everything():
        now = Mirrored(tiny_run)
        runs = (now.parent, *now.stages.values())
        points = [now.client.get_metric_history(run.info.run_id, name) for run in runs for name in run.data.metrics]
        return set(now.stages), sum(map(len, points)), len(now.versions("vaebm-tiny-vaebm")), place(tiny_run)

    before = everything()
    tiny_run.run(*python(*TRACK))
    assert everything() == before


def test_what_is_new_is_appended_and_what_changed_is_a_new_run(finished, python):
    """In a copied folder everything is mirrored anew; then a longer history goes on in its run, other settings do not.

    Another chain is another model, another number of KID's subsets is not.
    """
    finished.run(*python(*TRACK))
    before, versions = (
        place(finished)["stages"],
        {name: len(Mirrored(finished).versions(f"vaebm-tiny-{name}")) for name in ("nvae", "vaebm")},
    )
    with (finished.folder / "results" / "tiny" / "nvae" / "seed0" / "history.jsonl").open("a") as file:
        file.write('{"step": 60, "loss": 1.0}\n')
    chain = json.loads(
        (finished.folder / "results" / "tiny" / "vaebm" / "seed0" / "evaluation" / "metrics.json").read_text()
    )["chain"]
    finished.edit("results/tiny/vaebm/seed0/samples/samples.yaml", "steps: 2", "steps: 3")
    change(finished, "vaebm/seed0/evaluation/metrics.json", chain=chain | {"steps": 3})
    finished.edit("results/tiny/nvae/seed0/evaluation/evaluation.yaml", "kid_subsets: 10", "kid_subsets: 11")
    finished.run(*python(*TRACK))
    after, now = place(finished)["stages"], Mirrored(finished)
    assert {name for name in after if after[name]["run"] != before[name]["run"]} == {
        "evaluation nvae seed0",
        "evaluation vaebm seed0",
    }
    old = now.client.get_run(before["evaluation vaebm seed0"]["run"])
    assert (old.data.tags["status"], old.info.run_name) == ("superseded", "evaluation vaebm seed0, superseded")
    assert now.curve("nvae seed0", "loss")[-1] == (60, 1.0)
    assert {name: len(now.versions(f"vaebm-tiny-{name}")) for name in versions} == {
        "nvae": versions["nvae"],
        "vaebm": versions["vaebm"] + 1,
    }
    assert now.client.get_experiment_by_name("vaebm").artifact_location == (finished.folder / "mlartifacts").as_uri()


def test_figures_of_an_earlier_model_are_not_shown_as_this_one_s(finished):
    """A model trained again, or in training, and a chain with other settings wait for their evaluation."""
    results = finished.folder / "results" / "tiny"

    def evaluated() -> list[str]:
        return [stage.name for stage in found_in(results) if stage.tags["stage"] == "evaluation"]

    assert evaluated() == ["evaluation nvae seed0", "evaluation vaebm seed0"]
    finished.edit("results/tiny/vaebm/seed0/samples/samples.yaml", "steps: 2", "steps: 3")
    assert evaluated() == ["evaluation nvae seed0"]
    finished.edit("results/tiny/vaebm/seed0/samples/samples.yaml", "steps: 3", "steps: 2")
    change(finished, "vaebm/seed0/training.json", model="0" * 64)
    assert evaluated() == ["evaluation nvae seed0"]
    (results / "nvae" / "seed0" / "training.json").unlink()
    assert evaluated() == []


def test_a_gan_the_guard_and_whatever_is_measured(finished, python):
    """A GAN's training is a stage; the run's page shows the guard; every number of metrics.json is a metric."""
    results = finished.folder / "results" / "tiny"
    (results / "gan" / "seed0").mkdir(parents=True)
    (results / "gan" / "seed0" / "wgan.yaml").write_text(GAN)
    gan = (
        "wgan",
        "results/tiny/gan/seed0/wgan.yaml",
        "--data",
        "data/digits/manifest.json",
        "--nvae",
        "results/tiny/nvae/seed0/model.safetensors",
    )
    finished.run(*python(*gan, "--model", "results/tiny/gan/seed0/model.safetensors"))
    events = [
        {
            "iteration": 7,
            "reason": "loss nan, gradient norm 3",
            "action": "went back to iteration 5, with another seed and 0.5 times the learning rate",
        },
        {"iteration": 15, "reason": "energy gap 9 is beyond 10 times the spread 0.8", "action": "stopped"},
    ]
    change(
        finished,
        "vaebm/seed0/training.json",
        events=events,
        status="diverged at iteration 15: energy gap 9 is beyond 10 times the spread 0.8",
    )
    metrics = json.loads((results / "vaebm" / "seed0" / "evaluation" / "metrics.json").read_text())["metrics"]
    metrics["precision-classifier"] = {"value": 0.5, "samples": 200, "interval": [0.25, 0.75]}
    steps = {"counts": [0, 5, 20], "FD-classifier": [3.0, 2.0, 1.0], "energy": [0.0, -1.0, -2.0], "samples": 100}
    change(finished, "vaebm/seed0/evaluation/metrics.json", metrics=metrics, steps=steps)
    finished.run(*python(*TRACK))

    now = Mirrored(finished)
    run = now.stages["wgan gan seed0"]
    assert run.data.params["wgan.iterations"] == "2" and (run.data.tags["variant"], run.data.tags["stage"]) == (
        "gan",
        "wgan",
    )
    history = (results / "gan" / "seed0" / "history.jsonl").read_text().splitlines()
    assert now.curve("wgan gan seed0", "gap") == [(line["step"], line["gap"]) for line in map(json.loads, history)]
    run = now.stages["ebm vaebm seed0"]
    assert run.info.status == "FAILED" and run.data.tags["status"].startswith("diverged at iteration 15: ")
    told = run.data.tags["mlflow.note.content"]
    assert "| 7 | loss nan, gradient norm 3 | went back to iteration 5" in told and "| 15 |" in told
    assert run.data.tags["guard"].startswith("iteration 7: loss nan, gradient norm 3: went back to iteration 5")
    assert now.curve("ebm vaebm seed0", "guard/events") == [(7, 1), (15, 2)]
    figures = now.stages["evaluation vaebm seed0"].data.metrics
    interval = [figures[f"interval/precision-classifier-{bound}"] for bound in ("low", "high")]
    assert (figures["precision-classifier"], interval) == (0.5, [0.25, 0.75])
    assert now.curve("evaluation vaebm seed0", "steps/FD-classifier") == [(0, 3.0), (5, 2.0), (20, 1.0)]
    assert now.curve("evaluation vaebm seed0", "steps/energy") == [(0, 0.0), (5, -1.0), (20, -2.0)]


def test_what_was_not_finite_is_a_gap_in_its_curve():
    """Of that curve alone; the points beside the gap keep their steps."""
    stage = StageRun("evaluation")
    stage.add("steps", {"counts": [0, 5, 20], "FD-classifier": [3.0, 2.0, 1.0], "energy": [0.0, None, -2.0]})
    stage.add("diagnostics", {"energy": [1.0, 2.0, None], "acceptance": [None, 0.5]})
    assert stage.curves == {
        "steps/FD-classifier": [(0, 3.0), (5, 2.0), (20, 1.0)],
        "steps/energy": [(0, 0.0), (20, -2.0)],
        "diagnostics/energy": [(0, 1.0), (1, 2.0)],
        "diagnostics/acceptance": [(2, 0.5)],
    }


def test_two_at_once_on_a_new_database(finished, python):
    """Neither fails, and both are mirrored; without metrics no models are registered, which takes longest."""
    (finished.folder / "mlflow.db").unlink()
    for metrics in (finished.folder / "results" / "tiny").glob("*/seed0/evaluation/metrics.json"):
        metrics.unlink()
    shutil.copytree(finished.folder / "results" / "tiny", finished.folder / "results" / "other")
    commands = [python("track", f"results/{name}") for name in ("tiny", "other")]
    printed = [
        subprocess.Popen(command, cwd=finished.folder, env=finished.environment(), stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    assert all("3 stage runs mirrored" in process.communicate()[0] for process in printed)


@pytest.mark.parametrize("failure", ["damaged", "absent"])
def test_failure_is_a_warning(finished, failure):
    """One line, status 0, and tracking.json says so; its place is kept."""
    hide = "import sys; sys.modules['mlflow'] = None; " if failure == "absent" else ""
    (finished.folder / "mlflow.db").write_bytes(b"no database")
    before = place(finished)
    printed = finished.run(
        sys.executable,
        "-c",
        f"{hide}from pathlib import Path; from vaebm.tracking import run; run(Path('results/tiny'))",
    )
    warnings = [
        line for line in printed.splitlines() if line.startswith("warning: results/tiny was not mirrored to MLflow")
    ]
    assert len(warnings) == 1 and "Traceback" not in printed
    after = place(finished)
    assert after.pop("status").startswith("not mirrored: ") and after == {
        name: value for name, value in before.items() if name != "status"
    }


def test_unknown_folder_is_one_line(clone, python):
    assert (
        clone.run(*python("track", "results/digit"), fails=True)
        == "results/digit: expected the results of an experiment, found no folder\n"
    )
