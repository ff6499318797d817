"""Training of the energy as a stage: resume, restarts, the choice of the snapshot, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from ebm_stage import NETWORK, REPLAY, make_nvae, settings

import vaebm.ebm.plots
import vaebm.ebm.train
from vaebm.config import ChainSettings, EBMSettings, NVAENetworkSettings
from vaebm.config.yaml_files import validate
from vaebm.data import prepare
from vaebm.ebm.selection import best_snapshot, select
from vaebm.energy.network import EnergyNetwork
from vaebm.model import VAEBM
from vaebm.system.checkpoint import load_model, save_model
from vaebm.system.device import Interrupted, seeded
from vaebm.system.errors import UserError
from vaebm.training.loop import Limits

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and the model of an NVAE."""
    folder = tmp_path_factory.mktemp("inputs")
    prepare("digits", folder / "data")
    save_model(
        folder / "nvae.pt",
        "nvae",
        NVAENetworkSettings.model_validate(NETWORK).model_dump(),
        make_nvae().state_dict(),
        shape=[1, 8, 8],
    )
    return folder


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of five hundred chains, four at a time, would take most of the time."""
    monkeypatch.setattr(vaebm.ebm.plots, "COUNT", 20)


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ebm.yaml").write_text(yaml.safe_dump({"seed": 0, "ebm": settings(**changes)}))
    return folder / "ebm.yaml"


def run(inputs: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """The stage; training.json."""
    limits = Limits(checkpoint_every=0.0)
    file = write(folder, **changes)
    vaebm.ebm.train.run(
        file,
        inputs / "data" / "manifest.json",
        inputs / "nvae.pt",
        folder / "model.pt",
        threads=1,
        gpus=0,
        limits=limits,
    )
    return json.loads((folder / "training.json").read_text())


def explode(monkeypatch: pytest.MonkeyPatch, first: int, rate: float, stops: list[int] | None = None) -> None:
    """Change the learning rate from iteration `first` on; send SIGTERM at each iteration in `stops`."""

    def learning_rate(step: int, _: object) -> float:
        if stops and step == stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        return 1e-3 if step < first else rate

    monkeypatch.setattr(vaebm.ebm.train, "energy_learning_rate", learning_rate)


def test_a_diverged_training_restarts_from_its_last_good_snapshot(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Explodes after iteration 10 through the scale of the energies; restarts at 8 with smaller steps; ends well."""
    explode(monkeypatch, 10, rate=1.0)
    facts = run(inputs, tmp_path, guard={"restarts": 1, "restart_factor": 1e-4}, replay=REPLAY)
    (event,) = facts["events"]
    assert facts["status"] == "finished" and facts["steps"] == 16
    assert event["iteration"] == 12 and " is beyond 1000 times its median before, " in event["reason"]
    assert event["action"] == "went back to iteration 8, with another seed and 0.0001 times the learning rate"
    assert sorted(map(int, facts["selection"]["candidates"])) == [12, 16] and facts["selection"]["last"] == 16
    lines = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    rates = [(line["step"], line["learning_rate"]) for line in lines]
    assert rates == [(0, 1e-3), (5, 1e-3), (10, 1.0), (12, 1.0), (10, 1e-4), (15, 1e-4)]
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_training_without_a_good_snapshot_restarts_from_the_beginning(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as it may; each restart makes smaller steps, and training.json tells of every one."""
    explode(monkeypatch, 0, rate=1e4)
    facts = run(inputs, tmp_path / "enough", guard={"restarts": 3, "restart_factor": 1e-4})
    assert [event["action"].split(", ")[0] for event in facts["events"]] == ["went back to iteration 0"] * 2
    assert facts["events"][1]["action"].endswith(" and 1e-08 times the learning rate") and facts["status"] == "finished"
    with pytest.raises(UserError, match="diverged at iteration .* before its first good snapshot"):
        run(inputs, tmp_path / "one", guard={"restarts": 1, "restart_factor": 0.5})


@pytest.mark.parametrize("chains", [{"replay": REPLAY}, {"training": {"chain_every": 3}}], ids=["replay", "every"])
def test_a_stopped_training_ends_in_the_same_bits(
    chains: dict[str, Any],
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Interrupted before the explosion, during it, and after the restart."""
    changes = chains | {"encoded": 0.25, "guard": {"restarts": 1, "restart_factor": 1e-4}}
    explode(monkeypatch, 10, rate=1.0)
    whole = run(inputs, tmp_path / "whole", **changes)
    explode(monkeypatch, 10, rate=1.0, stops=[6, 11, 9, 13])
    for _ in range(4):
        with pytest.raises(Interrupted):
            run(inputs, tmp_path / "cut", **changes)
    cut = run(inputs, tmp_path / "cut", **changes)
    assert [line.split()[4] for line in capsys.readouterr().out.splitlines() if "resuming" in line] == [
        "7",
        "12",
        "10",
        "14",
    ]
    assert cut | {"seconds": 0, "system": {}} == whole | {"seconds": 0, "system": {}}
    assert (tmp_path / "cut" / "history.jsonl").read_text() == (tmp_path / "whole" / "history.jsonl").read_text()


def test_the_better_of_two_snapshots_is_chosen() -> None:
    """Data are the NVAE's images; a flat energy wins over one that drives the chains away, in either order."""
    nvae, stage = make_nvae(), EBMSettings.model_validate(settings(training={"batch": 100}, selection={"images": 400}))
    data = (VAEBM(nvae, None).sample(400, seed=1) * 255).round().to(torch.uint8)
    dataset = SimpleNamespace(split=lambda name: (data, None))
    with seeded(0):
        energy = EnergyNetwork(stage.network, 1).requires_grad_(False)
    energy.initialize(data / 255)
    harmless, wild = (
        {name: factor * value if "head" in name else value.clone() for name, value in energy.state_dict().items()}
        for factor in (0.0, 1e4)
    )
    distances = []
    for planted in ({1: harmless, 2: wild}, {1: wild, 2: harmless}):
        found = select(VAEBM(nvae, energy), planted, planted.__getitem__, dataset, stage, seed=0)
        assert found.last == 2 and planted[found.chosen] is harmless
        distances.append(sorted(value for value in found.candidates.values() if value is not None))
    (near, far), again = distances
    assert [near, far] == again and far > 1000 * near  # a distance depends on the snapshot, not on its place
    still = stage.model_copy(
        update={"selection": stage.selection.model_copy(update={"chain": ChainSettings(steps=0, step_size=1.0)})}
    )
    alone = select(VAEBM(nvae, energy), [1, 2], {1: harmless, 2: wild}.__getitem__, dataset, still, seed=0)
    assert alone.candidates[1] == alone.candidates[2] and alone.chosen == 2  # without a chain there is no difference


def test_snapshots_without_a_distance_are_chosen_last() -> None:
    assert best_snapshot({10: 3.0, 20: None, 30: 2.0, 40: 5.0}) == 30
    assert best_snapshot({10: 3.0, 20: 3.0}) == 20
    assert best_snapshot({10: 9.0, 20: None}) == 10
    assert best_snapshot({10: None, 20: None}) == 20


@pytest.mark.parametrize(("replay", "every"), [(REPLAY | {"capacity": 120}, 1), (None, 3)])
def test_two_processes_equal_one(replay: dict[str, Any] | None, every: int, inputs: Path, tmp_path: Path) -> None:
    """Under torchrun, initialisation, replay, encoded starts and gradients equal those of the whole batch."""
    changes: dict[str, Any] = {
        "replay": replay,
        "encoded": 0.5,
        "training": {"precision": "float64", "iterations": 8, "batch": 50, "chain_every": every},
    }
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start in (("one", []), ("two", torchrun)):
        arguments = [
            str(write(tmp_path / name, **changes)),
            "--data",
            str(inputs / "data" / "manifest.json"),
            "--nvae",
            str(inputs / "nvae.pt"),
        ]
        command = [
            sys.executable,
            *start,
            "-m",
            "vaebm",
            "ebm",
            *arguments,
            "--model",
            str(tmp_path / name / "model.pt"),
        ]
        subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    one, two = (load_model(tmp_path / name / "model.pt", "energy")["weights"] for name in ("one", "two"))
    assert one["head.weight"].dtype == torch.float64
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )
    for left, right in zip(
        *(map(json.loads, (tmp_path / name / "history.jsonl").read_text().splitlines()) for name in ("one", "two")),
        strict=True,
    ):
        assert right == pytest.approx(left, rel=1e-10, abs=1e-10)
    assert json.loads((tmp_path / "two" / "training.json").read_text())["processes"] == 2


def test_a_buffer_smaller_than_a_batch_is_one_clear_line() -> None:
    with pytest.raises(
        UserError, match=r"^ebm.yaml: ebm: replay.capacity must be at least training.batch \(4\), found 3$"
    ):
        validate(EBMSettings, settings(replay=REPLAY | {"capacity": 3}), "ebm.yaml: ebm")
