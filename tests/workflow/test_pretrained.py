"""Models from elsewhere instead of trainings, really run."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import torch
import yaml
from mlflow.tracking import MlflowClient
from published_files import SMALLEST, write_published

from vaebm.config import NVAENetworkSettings
from vaebm.nvae.model import NVAE
from vaebm.system.checkpoint import load_model
from vaebm.system.files import checksum

RUN = "results/tiny/nvae/seed{seed}"
ENERGY = "results/tiny/vaebm/seed0/model.safetensors"
NAMED = "name=tiny_taken"
AFTER = {"classifier": 1, "reference": 1, "samples": 4, "evaluation": 2, "tracking": 1, "benchmarks": 1, "track": 1}


def taken(nvae: str, energy: str) -> tuple[str, ...]:
    return "--config", NAMED, f"set=[nvae.checkpoint={nvae}, ebm.checkpoint={energy}]"


def record(project, path: str) -> dict:
    return json.loads((project.folder / "results" / path).read_text())


def test_models_of_another_run_draw_its_images(finished):
    """No training starts, and the images are the same bits."""
    assert finished.planned(*taken(RUN, ENERGY)) == {"pretrained": 2, **AFTER}
    shards = [f"{variant}/seed0/samples/shard-000.npy" for variant in ("nvae", "vaebm")]
    targets = [f"results/tiny_taken/{shard}" for shard in shards]
    finished.snakemake(*targets, *taken(RUN, ENERGY))
    for shard in shards:
        one, other = (finished.folder / "results" / name / shard for name in ("tiny", "tiny_taken"))
        assert one.read_bytes() == other.read_bytes()
    origin = record(finished, "tiny_taken/vaebm/seed0/training.json")["checkpoint"]
    assert origin["source"] == ENERGY and origin["layout"] == "model"

    # an energy on an NVAE that is trained here does not wait for that training
    said = finished.snakemake("--dry-run", "--config", "name=tiny_energy", f"set=[ebm.checkpoint={ENERGY}]")
    waits = re.findall(r"rule pretrained:\n    input: (.*)\n", said)
    assert len(waits) == 1 and "nvae/seed0/model" not in waits[0] and "rule nvae:" in said

    (finished.folder / "empty").mkdir()
    said = finished.snakemake("--dry-run", *taken("empty", ENERGY), fails=True).splitlines()[-1]
    assert "nvae.checkpoint: expected a file, a folder with a model" in said and "found none at empty/model.saf" in said

    # the same files elsewhere change nothing, also in a dry run; other weights are another model
    shutil.copytree(finished.folder / "results/tiny/nvae/seed0", finished.folder / "moved")
    assert finished.planned(*targets, *taken("moved", ENERGY)) == {}
    (finished.folder / "moved/model.safetensors").write_bytes((finished.folder / ENERGY).read_bytes())
    assert finished.planned(*targets, *taken("moved", ENERGY))["pretrained"] == 2
    said = finished.snakemake(*targets, *taken("moved", ENERGY), fails=True)
    assert "moved/model.safetensors: expected a model of kind 'nvae', found one of kind 'energy'" in said

    # the evaluation compares an energy with its NVAE, wherever both are from
    finished.edit("results/tiny/vaebm/seed0/training.json", '"nvae": "', '"nvae": "0')
    metrics = "results/tiny/vaebm/seed0/evaluation/metrics.json"
    said = finished.snakemake(metrics, "--forcerun", metrics, fails=True)
    assert re.search(rf"{ENERGY}: expected an energy of the NVAE \w{{64}} .*, found one of 0\w{{64}}", said)


def test_a_model_put_by_hand_is_refused_and_kept(finished):
    """It would be lost where a training wrote the same file; also one that comes with its record and settings."""
    folder = finished.folder / "results/tiny_hand/nvae/seed0"
    folder.mkdir(parents=True)
    shutil.copy2(finished.folder / "results/tiny/nvae/seed0/model.safetensors", folder)
    for arguments in ((), ("--dry-run",)):
        said = finished.snakemake("--config", "name=tiny_hand", "set=[samples.count=150]", *arguments, fails=True)
        assert said.splitlines()[-1].startswith("results/tiny_hand/nvae/seed0/model.safetensors: expected no file")
    assert (folder / "model.safetensors").is_file() and not (folder / "nvae.yaml").exists()
    shutil.copytree(finished.folder / "results/tiny/nvae", finished.folder / "results/tiny_copied/nvae")
    os.utime(finished.folder / "data/digits/manifest.json")  # prepared after the model was copied
    for _ in range(2):
        said = finished.snakemake("--config", "name=tiny_copied", "set=[samples.count=150]", fails=True)
        assert "results/tiny_copied/nvae/seed0/model.safetensors: expected no file" in said


def test_a_published_file_gives_both_rows_without_training_an_nvae(finished, python):
    """The authors' layout, with all states of their training; a damaged one stops before any training."""
    torch.manual_seed(0)
    nvae = NVAE(NVAENetworkSettings.model_validate(SMALLEST), (3, 16, 16))
    write_published(finished.folder / "official.pt", nvae, prefix="module.")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (400, 16, 16, 3), dtype=np.uint8)
    np.savez(finished.folder / "mine.npz", images=images, labels=np.arange(400) % 10)
    mine = {"dataset": "arrays", "path": "mine.npz", "name": "mine", "side": 16, "channels": 3, "heldout": 0.25}
    network = {**SMALLEST, "pixel_log_sigma_floor": None}
    content = {"base": "tiny", "data": mine, "nvae": {"network": network, "checkpoint": "official.pt"}}
    content["evaluation"] = {"ood": ["interpolation"]}
    path = finished.folder / "config/experiments/mine.yaml"
    path.write_text(yaml.safe_dump(content))

    plan = finished.planned("--config", "experiments=[mine]")
    assert plan["pretrained"] == plan["ebm"] == 1 and "nvae" not in plan
    whole = (finished.folder / "official.pt").read_bytes()
    (finished.folder / "official.pt").write_bytes(whole[:-100])
    said = finished.snakemake("--config", "experiments=[mine]", fails=True)
    assert "official.pt: expected" in said and not (finished.folder / "results/mine/vaebm/seed0/ebm.log").exists()
    (finished.folder / "official.pt").write_bytes(whole)
    finished.snakemake("--config", "experiments=[mine]")
    table = json.loads((finished.folder / "results/benchmarks.json").read_text())["mine"]
    assert table.keys() == {"nvae", "vaebm"} and all("FD-classifier" in row for row in table.values())
    words = f"published weights, sha256 {checksum(finished.folder / 'official.pt')[:16]}"
    for page in ("benchmarks.md", "report.html"):
        assert f"nvae: {words}." in (finished.folder / "results" / page).read_text()
    assert "reconstructions.png" not in (finished.folder / "results/report.html").read_text().partition("mine")[2]
    finished.run(*python("publish", "results/mine/nvae", "folder"))
    assert f"Stage nvae was not trained here: {words}." in (finished.folder / "folder/README.md").read_text()
    client = MlflowClient(tracking_uri=f"sqlite:///{finished.folder / 'mlflow.db'}")
    home = client.get_experiment_by_name("vaebm").experiment_id
    assert words in {run.data.tags.get("status") for run in client.search_runs([home])}
    weights = load_model(finished.folder / "results/mine/nvae/seed0/model.safetensors")["weights"]
    assert all(torch.equal(weights[name], value) for name, value in nvae.state_dict().items())
