"""Training of the energy: its chains, its updates, several processes, resume, restarts, the choice of the snapshot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import vaebm.ebm.plots
import vaebm.ebm.train
from vaebm.chain.diagnostics import diagnose
from vaebm.config import ChainSettings, EBMSettings, NVAENetworkSettings
from vaebm.config.yaml_files import validate
from vaebm.data import prepare
from vaebm.ebm.iteration import EBMTrainer, initialize
from vaebm.ebm.selection import best_snapshot, select
from vaebm.energy.network import EnergyNetwork
from vaebm.model import VAEBM
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.system.checkpoint import load_model, save_model
from vaebm.system.device import Interrupted, seeded, to_device_channels_last
from vaebm.system.errors import UserError
from vaebm.training.loop import Limits

ROOT = Path(__file__).parents[2]

NETWORK: dict[str, Any] = {
    "channels_encoder": 8, "channels_decoder": 8, "groups": [2, 1], "latents": 2, "preprocess_blocks": 1,
    "preprocess_cells": 1, "postprocess_cells": 1, "cells_encoder": 1, "cells_decoder": 1,
}  # fmt: skip

SETTINGS: dict[str, Any] = {
    "network": {"channels": 8, "widths": [1, 2], "down": [0]},
    "chain": {"steps": 2, "step_size": 0.02},
    "training": {
        "iterations": 16,
        "batch": 4,
        "learning_rate": 1e-3,
        "energy_penalty": 0.01,
        "average_decay": 0.9,
        "snapshot_every": 4,
    },
    "guard": {"patience": 2},
    "selection": {"candidates": 2, "images": 40},
}
REPLAY = {"capacity": 10, "probability": 0.8, "anneal_iterations": 2}


def settings(**changes: Any) -> dict[str, Any]:
    """`SETTINGS` with other values; those of a section are merged into it."""
    return SETTINGS | {
        name: SETTINGS[name] | value if name in SETTINGS and isinstance(value, dict) else value
        for name, value in changes.items()
    }


def make_nvae(bits: int = 8) -> NVAE:
    """Untrained, as its training would leave it: frozen, in evaluation mode; its posterior is not its prior."""
    with seeded(0):
        nvae = NVAE(NVAENetworkSettings.model_validate(NETWORK | {"bits": bits}), (1, 8, 8))
    return to_device_channels_last(nvae.requires_grad_(False).eval(), torch.device("cpu"))


def make_trainer(bits: int = 8, **changes: Any) -> EBMTrainer:
    """In double precision, initialised."""
    stage = EBMSettings.model_validate(settings(**changes))
    nvae = make_nvae(bits).double()
    with seeded(1):
        energy = EnergyNetwork(stage.network, 1).double()
    initialize(energy, nvae, images(40), stage, seed=0)
    return EBMTrainer(nvae, energy, stage, seed=0)


def images(count: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def iterate(trainer: EBMTrainer, steps: range) -> None:
    for step in steps:
        trainer.gradients(trainer.batch(step, images(40)), step)
        trainer.update(1e-3)


# --------------------------------------------------------------------------------------------------------- an iteration
@pytest.mark.parametrize("potential", ["noise", "density"])
def test_each_chain_follows_its_own_gradient(potential: str) -> None:
    """Two of four chains end where they end in a batch of two: to rounding, which depends on the size of a batch."""
    two, four = make_trainer(potential=potential), make_trainer(potential=potential)
    two.gradients(images()[:2], 0)
    four.gradients(images(), 0)
    start, _ = four.start(images(), 0, NoiseSource(0, "chain", range(4)))
    for alone, among, begin in zip(two.ends, four.ends, start, strict=True):
        torch.testing.assert_close(alone, among[:2], rtol=1e-12, atol=1e-12)
        assert (among - begin).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("potential", "start"), [("noise", "prior"), ("density", "prior"), ("pixels", "prior"), ("pixels", "uniform")]
)
def test_an_iteration_moves_the_energy_alone(potential: str, start: str) -> None:
    """All of its parameters but the head's bias, which no difference of energies sees, and nothing of the NVAE."""
    trainer, nvae = (
        make_trainer(potential=potential, start=start, training={"energy_penalty": 0.0, "weight_decay": 0.0}),
        make_nvae().double(),
    )
    before = {name: value.clone() for name, value in trainer.energy.state_dict().items()}
    iterate(trainer, range(1))
    moved = {name for name, value in trainer.energy.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(before) - {"head.bias"}
    assert all(torch.equal(value, trainer.nvae.state_dict()[name]) for name, value in nvae.state_dict().items())


def test_chains_from_encoded_images_start_at_the_posteriors_draw() -> None:
    """The last quarter of the chains decodes to the reconstructions of their images; the others are new."""
    trainer, chosen = make_trainer(encoded=0.25), images(8)
    noise = NoiseSource(0, "chain", range(16, 24))
    eps_z, eps_x = trainer.start(chosen, 2, noise)
    fresh, fresh_x = trainer.vaebm.initial_noise(noise)
    posterior = trainer.nvae(chosen[6:].double() / 255, noise=NoiseSource(0, "encoded", range(22, 24)))
    decoded, log_p = trainer.vaebm.decode([part[6:] for part in eps_z])
    torch.testing.assert_close(decoded.mean, posterior.pixels.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_p, posterior.log_p, rtol=1e-10, atol=1e-10)
    assert torch.equal(eps_x, fresh_x)
    for part, new in zip(eps_z, fresh, strict=True):
        assert torch.equal(part[:6], new[:6]) and not torch.isclose(part[6:], new[6:]).any()


def test_replayed_chains_go_on_where_the_last_ones_ended() -> None:
    """Probability 1, buffer of one batch: the chains start from the last ends in some order, with new pixel noise."""
    trainer = make_trainer(replay={"capacity": 4, "probability": 1.0, "anneal_iterations": 1})
    iterate(trainer, range(3))
    noise = NoiseSource(0, "chain", range(12, 16))
    eps_z, eps_x = trainer.start(images(), 3, noise)
    assert torch.equal(eps_x, trainer.vaebm.initial_noise(noise)[1])
    order = [(trainer.ends[0] == chain).flatten(1).all(1).nonzero().item() for chain in eps_z[0]]
    assert sorted(order) == [0, 1, 2, 3]
    assert all(torch.equal(part, end[order]) for part, end in zip(eps_z, trainer.ends, strict=True))


@pytest.mark.parametrize(("quantized", "levels"), [(True, 31), (False, 255)])
def test_positives_have_the_depth_of_the_nvae_or_of_the_file(quantized: bool, levels: int) -> None:
    trainer, seen = make_trainer(bits=5, quantize_positives=quantized), list[Tensor]()
    trainer.energy.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    trainer.gradients(images(), 0)
    positive = seen[-2]  # before the chains' images
    assert torch.equal((positive * levels).round() / levels, positive)
    assert len(positive.unique()) > 0.5 * min(levels, 256)


def test_the_norm_of_the_gradient_is_limited_after_the_other_clip() -> None:
    """Same direction, the length asked for; the figure is that before."""
    free, limited = make_trainer(), make_trainer(training={"gradient_norm_limit": 0.5})
    for trainer in (free, limited):
        seen = trainer.gradients(images(), 0)
        trainer.update(1e-3)
    before, after = (
        torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None]) for trainer in (free, limited)
    )
    assert seen.gradient_norm == pytest.approx(before.norm().item(), rel=1e-12) and seen.gradient_norm > 1.0
    torch.testing.assert_close(
        after, before * (0.5 / before.norm()), rtol=1e-5, atol=1e-12
    )  # torch adds 1e-6 to the norm


def test_only_the_energy_moves() -> None:
    trainer = make_trainer()
    before = {name: value.clone() for name, value in trainer.nvae.state_dict().items()}
    weights = [parameter.clone() for parameter in trainer.parameters]
    iterate(trainer, range(2))
    assert all(torch.equal(value, before[name]) for name, value in trainer.nvae.state_dict().items())
    assert not any(torch.equal(*pair) for pair in zip(trainer.parameters, weights, strict=True))


def test_a_restart_has_the_snapshots_weights_and_another_seed(tmp_path: Path) -> None:
    """Restores optimiser, average and singular vectors; the buffer is empty; chains and batches are new and fixed."""
    trainer = make_trainer(replay=REPLAY)
    iterate(trainer, range(3))
    torch.save(trainer.snapshot(), tmp_path / "snapshot.pt")
    weights, old = (
        [parameter.clone() for parameter in trainer.parameters],
        (trainer.batch(5, images(40)), trainer.noise_seed),
    )
    iterate(trainer, range(3, 6))
    ends = []
    for _ in range(2):
        again = make_trainer(replay=REPLAY)
        again.restart(torch.load(tmp_path / "snapshot.pt", weights_only=True))
        assert (
            again.restarts == 1 and again.noise_seed != old[1] and not torch.equal(again.batch(5, images(40)), old[0])
        )
        assert all(torch.equal(*pair) for pair in zip(again.parameters, weights, strict=True))
        assert again.buffer is not None and len(again.buffer) == 0
        assert [float(state["step"]) for state in again.optimizer.state.values()] == [3.0] * len(weights)
        assert again.average.updates == 3 and bool(again.spectral.started)
        iterate(again, range(3, 6))
        ends.append(again.ends)
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(ends[0], trainer.ends, strict=True))


@pytest.mark.parametrize("steps", [3, 0])
def test_figures_of_chains_do_not_depend_on_how_many_run_at_once(steps: int) -> None:
    trainer, noise, seen = make_trainer(), NoiseSource(0, "chain", range(7)), list[Tensor]()
    eps_z, eps_x = trainer.vaebm.initial_noise(noise)

    def observe(eps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        images = trainer.vaebm.decode(eps[:-1])[0].sample(eps[-1])
        seen.append(trainer.energy(images))
        return seen[-1], images

    def potential(eps: Sequence[Tensor]) -> Tensor:
        return trainer.vaebm.potential(eps[:-1], eps[-1])

    whole, parts = (
        diagnose(potential, [*eps_z, eps_x], observe, steps=steps, step_size=0.02, noise=noise, batch=batch)
        for batch in (None, 3)
    )
    for name, value in asdict(whole).items():
        assert getattr(parts, name) == pytest.approx(value, rel=1e-10, abs=1e-12), name
    torch.testing.assert_close(
        torch.cat(seen[steps + 1 :: steps + 1]), seen[0], rtol=1e-10, atol=1e-12
    )  # in order: starts first


# ------------------------------------------------------------------------------------------------------------ the stage
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


def test_a_stopped_training_ends_in_the_same_bits(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With replay; interrupted before the explosion, during it, and after the restart."""
    changes: dict[str, Any] = {"replay": REPLAY, "encoded": 0.25, "guard": {"restarts": 1, "restart_factor": 1e-4}}
    explode(monkeypatch, 10, rate=1.0)
    whole = run(inputs, tmp_path / "whole", **changes)
    explode(monkeypatch, 10, rate=1.0, stops=[6, 11, 9, 13])
    for _ in range(4):
        with pytest.raises(Interrupted):
            run(inputs, tmp_path / "cut", **changes)
    cut = run(inputs, tmp_path / "cut", **changes)
    assert [line.split()[5] for line in capsys.readouterr().out.splitlines() if "going on" in line] == [
        "7",
        "12",
        "10",
        "14",
    ]
    assert cut | {"seconds": 0} == whole | {"seconds": 0}
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


def test_two_processes_equal_one(inputs: Path, tmp_path: Path) -> None:
    """Under torchrun, initialisation, replay, encoded starts and gradients equal those of the whole batch."""
    changes: dict[str, Any] = {
        "replay": REPLAY | {"capacity": 120},
        "encoded": 0.5,
        "training": {"precision": "float64", "iterations": 8, "batch": 50},
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
        subprocess.run(
            command, cwd=tmp_path, check=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        )
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
