"""A training that explodes stops in time, keeps its last good state, and says what to do."""

import json
from pathlib import Path

import pytest
import torch

import vaebm.ebm.train
import vaebm.nvae.train
from vaebm import load_energy
from vaebm.config import EBMTrainingSettings, GuardSettings
from vaebm.config.yaml_files import read_experiment, write_settings
from vaebm.data import prepare
from vaebm.system.checkpoint import Checkpoints, load_model
from vaebm.system.errors import UserError
from vaebm.training.loop import Limits

EXPERIMENT = Path(__file__).parents[2] / "config" / "experiments" / "tiny.yaml"
MACHINE = {"threads": 1, "gpus": 0, "limits": Limits()}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Data, and the settings files of `tiny` with a guard that acts fast."""
    prepare("digits", tmp_path / "data")
    experiment = read_experiment(EXPERIMENT)
    training = EBMTrainingSettings.model_validate(
        experiment.ebm.training.model_dump() | {"iterations": 40, "snapshot_every": 2}
    )
    ebm = experiment.ebm.model_copy(update={"training": training, "guard": GuardSettings(patience=3)})
    write_settings(experiment.model_copy(update={"ebm": ebm}), tmp_path, [0])
    return tmp_path


def train_nvae(results: Path) -> Path:
    folder = results / "nvae" / "seed0"
    vaebm.nvae.train.run(folder / "nvae.yaml", results / "data" / "manifest.json", folder / "model.pt", **MACHINE)
    return folder / "model.pt"


def train_ebm(results: Path, nvae: Path) -> Path:
    folder = results / "vaebm" / "seed0"
    vaebm.ebm.train.run(folder / "ebm.yaml", results / "data" / "manifest.json", nvae, folder / "model.pt", **MACHINE)
    return folder / "model.pt"


def test_energy_that_explodes_leaves_its_last_good_snapshots(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten iterations as usual, then steps of a thousand: the guard stops a few iterations later."""
    nvae = train_nvae(results)
    monkeypatch.setattr(vaebm.ebm.train, "energy_learning_rate", lambda step, _: 1e-4 if step < 10 else 1e3)
    model = train_ebm(results, nvae)
    facts = json.loads(model.with_name("training.json").read_text())
    assert facts["status"].startswith("diverged at iteration") and facts["steps"] < 20
    assert facts["events"] == [
        {"iteration": facts["steps"], "reason": facts["status"].split(": ", 1)[1], "action": "stopped"}
    ]
    assert set(facts["selection"]["candidates"]) == {"6", "8"}  # the latest that three good iterations followed
    assert facts["snapshot"] == facts["selection"]["chosen"] in (6, 8) and facts["selection"]["last"] == 8
    assert torch.isfinite(load_energy(model)(torch.rand(4, 1, 8, 8))).all()


@pytest.mark.parametrize("bad", [3, 1])
def test_energy_that_explodes_at_the_very_end_is_noticed(
    results: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    """Divergence in the last updates or in the last one: the model is still a good snapshot."""
    nvae = train_nvae(results)
    monkeypatch.setattr(vaebm.ebm.train, "energy_learning_rate", lambda step, _: 1e-4 if step < 40 - bad else 1e6)
    model = train_ebm(results, nvae)
    facts = json.loads(model.with_name("training.json").read_text())
    assert facts["status"].startswith("diverged at iteration 40: ") and facts["steps"] == 40
    assert set(facts["selection"]["candidates"]) == ({"32", "34"} if bad == 3 else {"34", "36"})
    assert torch.isfinite(load_energy(model)(torch.rand(4, 1, 8, 8))).all()


def test_energy_that_explodes_at_once_is_no_model(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvae = train_nvae(results)
    monkeypatch.setattr(vaebm.ebm.train, "energy_learning_rate", lambda step, _: 1e3)
    with pytest.raises(
        UserError,
        match="diverged at iteration .* before its first good snapshot.*choose a smaller ebm.training.learning_rate",
    ):
        train_ebm(results, nvae)
    assert not (results / "vaebm" / "seed0" / "model.pt").exists()


def test_a_skipped_step_leaves_nothing_behind(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of values that are not numbers: skipped and counted, and not in the batch norms' statistics either."""
    calls: list[int] = []

    class OnceNotANumber(vaebm.nvae.train.NVAE):
        def forward(self, x, *arguments, **more):  # type: ignore[no-untyped-def]
            calls.append(len(x))
            return super().forward(x * float("nan") if len(calls) == 8 else x, *arguments, **more)

    monkeypatch.setattr(vaebm.nvae.train, "NVAE", OnceNotANumber)
    model = train_nvae(results)
    assert json.loads(model.with_name("training.json").read_text())["skipped_steps"] == 1
    assert all(
        torch.isfinite(value).all() for value in load_model(model)["weights"].values() if value.is_floating_point()
    )


def test_nvae_whose_weights_are_lost_stops_with_advice(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step to NaN weights: the later losses are skipped, too many of them stop the run, the checkpoint stays."""
    rate = lambda step, *_: float("nan") if step == 5 else 1e-3  # noqa: E731
    monkeypatch.setattr(vaebm.nvae.train, "scheduled_learning_rate", rate)
    monkeypatch.setitem(MACHINE, "limits", Limits(checkpoint_every=0))
    with pytest.raises(
        UserError,
        match="21 steps in a row .* last good state is in .* larger nvae.training.norm_weight",
    ):
        train_nvae(results)
    folder = results / "nvae" / "seed0"
    assert not (folder / "model.pt").exists()
    (kept,) = (folder / "checkpoints").iterdir()
    last = Checkpoints(kept).load()
    assert last is not None and last["step"] == 5
    assert all(torch.isfinite(value).all() for value in last["state"]["nvae"].values())
