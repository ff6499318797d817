"""Models from elsewhere: every layout gives the same bits and a record of its origin; what does not fit is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from published_files import SMALLEST, write_published

from vaebm import VAEBM
from vaebm.config import ChainSettings, EBMSettings, EnergyNetworkSettings, NVAENetworkSettings, NVAESettings
from vaebm.data import write_images
from vaebm.energy.network import EnergyNetwork
from vaebm.energy.published_checkpoint import published_name
from vaebm.model.from_checkpoint import run
from vaebm.nvae.model import NVAE
from vaebm.system.checkpoint import hash_tensors, load_model, save_model
from vaebm.system.errors import UserError
from vaebm.system.files import checksum

ENERGY = {"channels": 64, "widths": [1, 1, 2, 2], "down": [0, 2]}
"""The published network for MNIST, whose images are 32×32."""


def dataset(folder: Path, name: str = "mine", side: int = 32, channels: int = 3, users: bool = False) -> Path:
    """Manifest of a small prepared set."""
    images = np.zeros((6, side, side, channels), np.uint8)
    source = {"user's files": {}} if users else {}
    write_images(folder, name, images, np.zeros(6, np.int64), {"train": (0, 4), "heldout": (4, 6)}, source)
    return folder / "manifest.json"


def nvae(**changes: Any) -> NVAE:
    torch.manual_seed(0)
    return NVAE(NVAENetworkSettings.model_validate(SMALLEST | changes), (3, 32, 32)).eval()


def energy(channels: int = 3) -> EnergyNetwork:
    torch.manual_seed(1)
    return EnergyNetwork(EnergyNetworkSettings.model_validate(ENERGY), channels)


def settings(folder: Path, source: object, stage: str = "nvae", **changes: Any) -> Path:
    """Settings file of a stage with a checkpoint."""
    if stage == "nvae":
        content = NVAESettings.model_validate({"network": SMALLEST | changes, "checkpoint": {"source": str(source)}})
    else:
        own = {"network": ENERGY, "chain": ChainSettings(steps=1, step_size=0.1), "potential": "density", **changes}
        content = EBMSettings.model_validate({**own, "checkpoint": {"source": str(source)}})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stage}.yaml").write_text(yaml.safe_dump({"seed": 3, stage: content.model_dump()}))
    return folder / f"{stage}.yaml"


def taken(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and record that a job wrote."""
    record = json.loads((folder / "training.json").read_text())
    content = load_model(folder / "model.safetensors")
    assert record["model"] == content["hash"] == hash_tensors(content["weights"])
    return content["weights"], record


@pytest.mark.parametrize("layout", ["published", "model", "folder", "seed", "pretrained", "hub"])
def test_every_layout_gives_the_same_nvae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    original, data = nvae(), dataset(tmp_path / "data", users=True)
    source: object = tmp_path / "there"
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "model.safetensors"
    if layout == "published":
        source = file = write_published(tmp_path / "official.pt", original, epoch=7, old=True)
    elif layout in ("pretrained", "hub"):
        VAEBM(original, None).save_pretrained(tmp_path / "there")
    else:
        save_model(file, "nvae", original.settings.model_dump(), original.state_dict(), shape=[3, 32, 32])
        source = file if layout == "model" else source
    if layout == "seed":
        (tmp_path / "there").rename(tmp_path / "seed3")
        source, file = tmp_path / "seed{seed}", tmp_path / "seed3" / "model.safetensors"
    if layout == "hub":
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(tmp_path / "there"))
        source = "owner/name"
    run(settings(tmp_path / "run", source), data, None, tmp_path / "run" / "model.safetensors")
    weights, record = taken(tmp_path / "run")
    assert weights.keys() == original.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in original.state_dict().items())
    kind = {"published": "published", "pretrained": "pretrained", "hub": "pretrained"}.get(layout, "model")
    origin = record["checkpoint"]
    assert (origin["layout"], origin["source"]) == (kind, str(source)) and origin["sha256"] == checksum(file)
    words = "published weights" if layout == "published" else f"weights of {source}"
    assert record["status"] == f"{words}, sha256 {origin['sha256'][:16]}" and record["seed"] == 3
    if layout == "published":
        assert origin["epoch"] == 7 and origin["filled"]["min_groups_per_scale"] == 1


def test_an_energy_belongs_to_its_nvae(tmp_path: Path) -> None:
    """Published files do not say which; a folder of both does."""
    below, data, network = nvae(), dataset(tmp_path / "data"), energy()
    save_model(tmp_path / "nvae", "nvae", below.settings.model_dump(), below.state_dict(), shape=[3, 32, 32])
    state = {published_name(name): value for name, value in network.state_dict().items()}
    torch.save({"model": state}, tmp_path / "official.pth")
    run(
        settings(tmp_path / "a", tmp_path / "official.pth", "ebm"),
        data,
        tmp_path / "nvae",
        tmp_path / "a/model.safetensors",
    )
    weights, record = taken(tmp_path / "a")
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    assert record["nvae"] == hash_tensors(below.state_dict())

    VAEBM(below, network, potential="density").save_pretrained(tmp_path / "pair")
    run(settings(tmp_path / "b", tmp_path / "pair", "ebm"), data, tmp_path / "nvae", tmp_path / "b/model.safetensors")
    assert taken(tmp_path / "b")[0].keys() == weights.keys()
    torch.nn.init.zeros_(below.stem.weight)
    save_model(tmp_path / "nvae", "nvae", below.settings.model_dump(), below.state_dict(), shape=[3, 32, 32])
    with pytest.raises(
        UserError, match=r"pair/model.safetensors: expected an energy of the NVAE \w{64} .*found one of \w{64}$"
    ):
        run(
            settings(tmp_path / "c", tmp_path / "pair", "ebm"),
            data,
            tmp_path / "nvae",
            tmp_path / "c/model.safetensors",
        )
    VAEBM(below, None).save_pretrained(tmp_path / "alone")
    with pytest.raises(UserError, match="alone: expected a model with an energy, found an NVAE alone"):
        run(
            settings(tmp_path / "c", tmp_path / "alone", "ebm"),
            data,
            tmp_path / "nvae",
            tmp_path / "c/model.safetensors",
        )
    assert not (tmp_path / "c/model.safetensors").exists()


@pytest.mark.parametrize(
    ("data", "changes", "line"),
    [
        ({"side": 16}, {}, r"a model of images \(3, 16, 16\), as the data, found one of \(3, 32, 32\)"),
        ({"channels": 1}, {}, r"a model of images \(1, 32, 32\), as the data, found one of"),
        ({"name": "stacked_mnist"}, {}, r"a model of the data set stacked_mnist \(\w+\), found one of cifar10"),
        ({}, {"latents": 3}, r"nvae.yaml: nvae.network.latents: expected 2, as \S+official.pt has, found 3; `vaebm"),
        ({}, {"decoder": "bernoulli"}, r"nvae.network.decoder: expected normal, as \S+ has, found bernoulli; `vaebm"),
        ({}, {"groups": [3]}, r"nvae.network.groups: expected \[1, 1\], as \S+ has, found \[3\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, data: dict[str, Any], changes: dict[str, Any], line: str
) -> None:
    source = write_published(tmp_path / "official.pt", nvae())
    with pytest.raises(UserError, match=line):
        run(
            settings(tmp_path / "run", source, **changes),
            dataset(tmp_path / "data", **{"name": "cifar10", **data}),
            None,
            tmp_path / "model",
        )
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("content", [torch.zeros(2), [1], 3, {"state": 1}])
def test_files_of_torch_without_a_model_are_one_line(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match="other.pt: expected a published NVAE checkpoint with a dict under the key"):
        run(settings(tmp_path / "run", tmp_path / "other.pt"), dataset(tmp_path / "data"), None, tmp_path / "model")


def test_another_file_than_stated_is_refused(tmp_path: Path) -> None:
    source, data = write_published(tmp_path / "official.pt", nvae()), dataset(tmp_path / "data", "cifar10")
    path = settings(tmp_path / "run", source)
    for sha256, fits in ((checksum(source), True), ("0" * 64, False)):
        content = yaml.safe_load(path.read_text())
        content["nvae"]["checkpoint"]["sha256"] = sha256
        path.write_text(yaml.safe_dump(content))
        if fits:
            run(path, data, None, tmp_path / "run" / "model.safetensors")
        else:
            with pytest.raises(UserError, match=f"official.pt: expected the SHA-256 {sha256} of .*nvae.yaml, found"):
                run(path, data, None, tmp_path / "run" / "model.safetensors")


def test_the_data_of_a_run_are_compared_by_their_hash(tmp_path: Path) -> None:
    """A run says on which manifest it was trained; sets of one name may be different."""
    original, there = nvae(), tmp_path / "there"
    save_model(
        there / "model.safetensors", "nvae", original.settings.model_dump(), original.state_dict(), shape=[3, 32, 32]
    )
    record = {"stage": "nvae", "steps": 1, "seconds": 1.0, "fingerprint": "", "seed": 0, "status": "finished"}
    record |= {"data": "0" * 64, "model": hash_tensors(original.state_dict()), "commit": "", "changed": False}
    (there / "training.json").write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=f"expected a model of the data set mine .*found one of the manifest {'0' * 64}"
    ):
        run(settings(tmp_path / "run", there), dataset(tmp_path / "data"), None, tmp_path / "model")
