"""MLflow mirrors all results once, under the names of the settings and of the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mirrored import TRACK, Mirrored, place


@pytest.fixture(scope="module")
def mirrored(tiny_run):
    """What the shared run left in MLflow."""
    return Mirrored(tiny_run)


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
