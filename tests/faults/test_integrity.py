"""What a run reads again is compared with the hash made when it was written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import NETWORK

from vaebm import samples
from vaebm.config import SamplesSettings, fingerprint
from vaebm.data import open_images, write_images
from vaebm.ebm.snapshots import Snapshot, Snapshots
from vaebm.evaluation.inputs import check_shards
from vaebm.evaluation.reference import _hash, read_reference
from vaebm.nvae.model import NVAE
from vaebm.system.checkpoint import load_model, save_model
from vaebm.system.device import seeded
from vaebm.system.errors import UserError

SETTINGS = "seed: 3\nsamples:\n  count: 8\n  batch: 2\n  shards: 2\n  chain:\n    steps: 0\n    step_size: 1.0\n"
STAGE = SamplesSettings.model_validate({"count": 8, "batch": 2, "shards": 2, "chain": {"steps": 0, "step_size": 1.0}})


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    for seed in (0, 1):
        with seeded(seed):
            nvae = NVAE(NETWORK, (1, 8, 8))
        save_model(tmp_path / f"{seed}.pt", "nvae", NETWORK.model_dump(), nvae.state_dict(), shape=[1, 8, 8])
    (tmp_path / "samples.yaml").write_text(SETTINGS)
    paths = [tmp_path / f"shard-00{number}.npy" for number in range(2)]
    for number, path in enumerate(paths):
        samples.run(tmp_path / "samples.yaml", tmp_path / "0.pt", None, number, path, threads=1, gpus=0)
    return paths


def test_samples_are_those_that_were_drawn(shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    models = {"nvae": load_model(shards[0].with_name("0.pt"))["hash"]}
    check_shards(shards, 3, STAGE, models)
    other = {"nvae": load_model(shards[0].with_name("1.pt"))["hash"]}
    for arguments, what in (
        ((shards, 4, STAGE, models), "settings"),
        ((shards, 3, STAGE.model_copy(update={"stretch": True}), models), "settings"),
        ((shards, 3, STAGE, other), "nvae"),
        ((shards, 3, STAGE, {**models, "energy": "e"}), "energy"),
        ((shards[::-1], 3, STAGE, models), "indices"),
    ):
        with pytest.raises(UserError, match=rf"shard-00.\.npy: expected samples of {what} .*; remove it and sample"):
            check_shards(*arguments)
    assert not capsys.readouterr().err
    flip(shards[1], 200)
    with pytest.raises(UserError, match=r"shard-001\.npy: expected samples of bytes \w{16}, found \w{16}; remove"):
        check_shards(shards, 3, STAGE, models)
    for shard in shards:
        record = json.loads(shard.with_suffix(".json").read_text())
        shard.with_suffix(".json").write_text(
            json.dumps({k: v for k, v in record.items() if k not in ("sha256", "origin")})
        )
    check_shards(shards, 3, STAGE, models)
    assert capsys.readouterr().err.count("shard-000.npy: used unverified") == 1


def test_reference_is_that_which_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a shape in a header became smaller, of which the checksums of the zip file say nothing."""
    content = {"data": np.array("d" * 64), "weights": np.array("w" * 64), "real": np.array(1.0)}
    content |= {"train_features": np.ones((1500, 4), np.float32)}
    content |= {f"{split}_{what}": np.ones(4) for split in ("train", "heldout") for what in ("mean", "covariance")}
    path = tmp_path / "reference.npz"
    np.savez(path, hash=np.array(_hash(content)), **content)
    assert read_reference(path, "d" * 64, "w" * 64).real == 1.0 and not capsys.readouterr().err
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"(1500, 4)", b"(1400, 4)"))
    with pytest.raises(UserError, match="reference.npz: expected reference statistics, found a damaged file"):
        read_reference(path, "d" * 64, "w" * 64)
    np.savez(path, **content)
    read_reference(path, "d" * 64, "w" * 64)
    assert capsys.readouterr().err.count("reference.npz: used unverified") == 1


def test_damaged_snapshot_is_found_out(tmp_path: Path) -> None:
    made = Snapshots(1, 2)
    made.folder = tmp_path
    for number in (10, 20):
        made.take(Snapshot(number, 0), lambda: {"weight": torch.zeros(1000)})
    made.confirm(math.inf)
    state = json.loads(json.dumps(made.state_dict()))
    flip(tmp_path / "20-0.pt", 1500)
    again = Snapshots(1, 2)
    again.folder = tmp_path
    again.load_state_dict(state)
    assert not again.read(Snapshot(10, 0))["weight"].any()
    with pytest.raises(UserError, match="20-0.pt: expected a snapshot with the hash .*; remove it to go without"):
        again.read(Snapshot(20, 0))
    again.load_state_dict({name: state[name] for name in ("good", "waiting")})  # of an earlier version
    again.read(Snapshot(20, 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["splits"].update(heldout=[5, 9]),
        lambda content: content["splits"].update(train=[0, 7]),
        lambda content: content["splits"].update(train=[0, 7], heldout=[7, 10]),
        lambda content: content["splits"].update(train=[0, 6.0], heldout=[6.0, 10]),
        lambda content: content.update(dataset="digits"),
        lambda content: content["source"].update(seed=1),
        lambda content: content.update(hash="other"),
    ],
)
def test_edited_manifest_is_refused(change: Callable[[dict], object], tmp_path: Path) -> None:
    images = np.zeros((10, 2, 2, 1), np.uint8)
    write_images(tmp_path, "mine", images, np.zeros(10, np.int64), {"train": (0, 6), "heldout": (6, 10)}, {})
    manifest = tmp_path / "manifest.json"
    assert open_images(manifest).splits["heldout"] == (6, 10)
    content = json.loads(manifest.read_text())
    change(content)
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="manifest.json: not a manifest of a prepared data set .*; remove the folder"):
        open_images(manifest)


def test_manifest_of_an_earlier_version_is_used_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.zeros((10, 2, 2, 1), np.uint8)
    write_images(tmp_path, "mine", images, np.zeros(10, np.int64), {"train": (0, 6), "heldout": (6, 10)}, {})
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content.pop("hash") == fingerprint(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    open_images(tmp_path / "manifest.json")
    assert capsys.readouterr().err.count("manifest.json: used unverified") == 1
