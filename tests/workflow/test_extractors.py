"""An experiment with a published checkpoint as extractor: what runs, what reruns, what is refused at the start."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from weight_files import reduced_dinov2

from vaebm.evaluation.resnet56 import ResNet56
from vaebm.system.device import seeded

EXPERIMENT = "config/experiments/few.yaml"
RECIPES = Path(__file__).parents[2] / "docs/how-to/measure.md"


def of_real(extractor):
    """Metrics of the held-out images."""
    return {f"{name}-{extractor}" for name in ("FD", "precision", "density", "authenticity")}


@pytest.fixture(scope="module")
def measured(tiny_run, tmp_path_factory):
    """A finished run on a few colour images, as the recipe says: the weights are random and mean nothing."""
    project = tiny_run.copy(tmp_path_factory.mktemp("extractors") / "project")
    random = np.random.default_rng(0)
    (project.folder / "raw").mkdir()
    images = random.integers(0, 200, (160, 4, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    np.savez(project.folder / "raw" / "few.npz", images=images, labels=np.arange(160) % 2)
    with seeded(0):
        torch.save(ResNet56().state_dict(), project.folder / "raw" / "resnet56.th")
    (block,) = re.findall(r"^```yaml\n(  extractor: .*?)^```$", RECIPES.read_text(), re.MULTILINE | re.DOTALL)
    text = (project.folder / "config/experiments/tiny.yaml").read_text()
    text = text.replace(
        "dataset: digits",
        "dataset: arrays\n  path: raw/few.npz\n  name: few\n  side: 32\n  channels: 3\n  heldout: 0.2",
    )
    text = re.sub(r"  classifier:\n(    .*\n)+", block, text)
    text = re.sub(r"  ood: .*\n", "  ood: []\n", text).replace("count: 200", "count: 100")
    text = text.replace(
        "  guard:\n", "  guard:\n    gap_limit: 1000.0\n"
    )  # energies of larger images, after next to no training
    text += "\nvariants:\n  vaebm: {}\n  stretched:\n    samples:\n      stretch: true\n"
    (project.folder / EXPERIMENT).write_text(text)
    project.edit("config/config.yaml", "  - tiny\n", "  - few\n")
    project.snakemake()
    return project


def test_figures_are_named_after_the_extractor_down_to_the_table(measured):
    """No classifier is trained, no metric is called FID, the metric of stretched images has a name of its own."""
    results = measured.folder / "results"
    records = {
        name: json.loads((results / "few" / name / "seed0/evaluation/metrics.json").read_text())
        for name in ("nvae", "vaebm", "stretched")
    }
    assert not (results / "few" / "classifier").exists() and (results / "few" / "reference" / "resnet56.npz").is_file()
    for record in records.values():
        assert {
            "FD-resnet56",
            "FD-resnet56-heldout",
            "KID-resnet56",
            "IS-resnet56",
            "precision-resnet56",
            "recall-resnet56",
        } <= record["metrics"].keys()
        assert not any(name.startswith("FID") or "classifier" in name for name in record["metrics"])
        assert record["extractor"]["kind"] == "resnet56" and set(record["real"]) == of_real("resnet56")
    assert "FD-resnet56" in records["vaebm"]["steps"]
    assert {name: record["chain"]["stretch"] for name, record in records.items()} == {
        "nvae": False,
        "vaebm": False,
        "stretched": True,
    }
    assert {name for name, record in records.items() if "FD-resnet56-stretched" in record["metrics"]} == {
        "nvae",
        "vaebm",
    }
    # the same chains: the stretch of kept images, in [0, 1], against that of the means, is what clamping takes away
    plain, kept, means = (records[name]["metrics"][metric]["value"] for name, metric in (
        ("vaebm", "FD-resnet56"), ("vaebm", "FD-resnet56-stretched"), ("stretched", "FD-resnet56")))  # fmt: skip
    assert abs(kept - means) < abs(kept - plain)
    table = (results / "benchmarks.md").read_text()
    assert (
        "| FD-resnet56-stretched ↓" in table
        and "each image stretched" in table
        and "FD-resnet56" in (results / "report.html").read_text()
    )


def test_another_place_of_the_weights_reruns_nothing_and_other_bytes_do(measured, tmp_path):
    project = type(measured)(tmp_path / "changed")
    shutil.copytree(measured.folder, project.folder)
    shutil.move(project.folder / "raw" / "resnet56.th", project.folder / "elsewhere.th")
    project.edit(EXPERIMENT, "raw/resnet56.th", "elsewhere.th")
    assert project.planned() == {}
    with (project.folder / "elsewhere.th").open("ab") as file:
        file.write(b"\0")
    assert project.planned() == {"reference": 1, "evaluation": 3, "benchmarks": 1, "track": 1}


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_named_weights_are_looked_at_before_anything_starts(clone, content):
    """Missing, or of another file: one line, in a dry run too."""
    if content is not None:
        (clone.folder / "inception.pth").write_bytes(content)
    clone.edit("config/experiments/cifar10.yaml", "evaluation:\n", "evaluation:\n  inception_weights: inception.pth\n")
    printed = clone.run("snakemake", "--dry-run", "--config", "experiments=[cifar10]", fails=True)
    lines = [line for line in printed.splitlines() if not line.startswith("Using workflow specific profile")]
    assert len(lines) == 1, printed
    found = (
        "found No such file or directory; evaluation.inception_weights names the file"
        if content is None
        else "whose SHA-256 begins 6726825d, found"
    )
    assert (
        lines[0].startswith(
            "config/experiments/cifar10.yaml: evaluation: inception.pth: expected the weights of inception"
        )
        and found in lines[0]
    )
    assert not (clone.folder / "data").exists()


def test_two_extractors_at_once_show_both_families_of_rows(finished):
    """DINOv2 with random weights, and fewer channels and blocks, next to the classifier, which measures as before."""
    with pytest.MonkeyPatch.context() as patch:
        reduced_dinov2(patch, finished.folder / "dinov2.pth")
    finished.edit(
        "vaebm/evaluation/dinov2.py", "WIDTH, LAYERS, HEADS = 1024, 24, 16", "WIDTH, LAYERS, HEADS = 64, 2, 4"
    )
    before = json.loads((finished.folder / "results/tiny/vaebm/seed0/evaluation/metrics.json").read_text())
    further = "evaluation:\n  further_extractors: [DINOv2]\n  dinov2_weights: none.pth\n"
    finished.edit("config/experiments/tiny.yaml", "evaluation:\n", further)
    printed = finished.snakemake("--dry-run", fails=True)
    assert "none.pth: expected the weights of DINOv2, found No such file or directory; evaluation.dinov2" in printed
    finished.edit("config/experiments/tiny.yaml", "none.pth", "dinov2.pth")
    assert finished.planned() == {"reference": 1, "evaluation": 2, "benchmarks": 1, "track": 1}
    finished.snakemake()
    assert finished.planned() == {}
    results = finished.folder / "results"
    after = json.loads((results / "tiny/vaebm/seed0/evaluation/metrics.json").read_text())
    both = {f"{name}-{kind}" for kind in ("classifier", "DINOv2") for name in ("FD", "KID", "precision", "recall")}
    assert both <= after["metrics"].keys() and "IS-DINOv2" not in after["metrics"]
    timed = {name for name in before["metrics"] if name.startswith("seconds")}
    assert all(after["metrics"][name] == before["metrics"][name] for name in before["metrics"].keys() - timed)
    assert set(after["real"]) == of_real("classifier") | of_real("DINOv2")
    assert after["without"]["FD-classifier-infinity"].endswith("found 200 samples of 64 features")
    assert [one["kind"] for one in after["further_extractors"]] == ["DINOv2"] and "DINOv2" in after["models"]
    table, report = ((results / name).read_text() for name in ("benchmarks.csv", "report.html"))
    assert all(name in table and name in report for name in both)
    (row,) = (line for line in table.splitlines() if ",vaebm,FD-DINOv2," in line)
    assert "DINOv2-" in row and "classifier-" not in row, "each row names its own extractor"
    with contextlib.closing(sqlite3.connect(finished.folder / "mlflow.db")) as mirror:
        assert both <= {key for (key,) in mirror.execute("SELECT DISTINCT key FROM metrics")}
