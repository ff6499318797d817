"""MLflow after a change: what is new is added, what changed is a new run, and a failure is a warning."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from mirrored import TRACK, Mirrored, place

from vaebm.tracking.stages import StageRun
from vaebm.tracking.stages import stages as found_in

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


def change(project, path: str, **values) -> None:
    """Replace keys of a JSON file of the experiment's results."""
    file = project.folder / "results" / "tiny" / path
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_what_is_new_is_appended_and_what_changed_is_a_new_run(finished, python):
    """In a copied folder everything is mirrored anew. A longer history continues in its run, other settings do not.

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
    """Points of that curve alone are left out; those next to the gap keep their steps."""
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
