"""What Snakemake says of data sets before anything starts: files that are not there, two sets in one place."""

from __future__ import annotations

import shutil

import numpy as np
from PIL import Image

FOLDER = "config/experiments/folder.yaml"


def lines(project, *arguments: str, fails: bool = False) -> list[str]:
    printed = project.snakemake("--dry-run", "--config", *arguments, fails=fails)
    return [line for line in printed.splitlines() if not line.startswith("Using workflow specific profile")]


def test_a_folder_that_is_not_there_is_named_before_anything_starts(clone) -> None:
    (said,) = lines(clone, "experiments=[folder]", fails=True)
    assert said == f"{FOLDER}: data: raw/folder: expected a folder of pictures, found none; data.path names it"


def test_experiments_share_a_prepared_set_only_where_it_is_the_same(clone) -> None:
    """Other settings under the same name are refused; under another name the set is planned with its settings file."""
    (clone.folder / "raw" / "folder").mkdir(parents=True)
    np.savez(clone.folder / "raw" / "mine.npz", images=np.zeros((1, 16, 16, 3), np.uint8), labels=np.zeros(1, int))
    text = (clone.folder / FOLDER).read_text()
    other = clone.folder / "config/experiments/other.yaml"
    other.write_text(text.replace("dataset: folder", "dataset: arrays").replace("raw/folder #", "raw/mine.npz #"))
    (said,) = lines(clone, "experiments=[folder,other]", fails=True)
    assert (
        said == "config/experiments/other.yaml: data: another experiment has other settings for data/folder; "
        "give one of them a data.name of its own"
    )
    for name in ("here", "there"):
        tiny = (
            (clone.folder / "config/experiments/tiny.yaml")
            .read_text()
            .replace("dataset: digits", f"dataset: digits\n  path: {name}")
        )
        (clone.folder / f"config/experiments/{name}.yaml").write_text(tiny)
    (said,) = lines(clone, "experiments=[here,there]", fails=True)
    assert said.endswith("another experiment has other settings for data/digits; give both the same data.path")
    other.write_text(other.read_text().replace("name: folder #", "name: mine #"))
    planned = "\n".join(lines(clone, "experiments=[folder,other]", "--printshellcmds"))
    for name, dataset in {"folder": "folder", "mine": "arrays"}.items():
        settings = f".snakemake/settings/results/data/{name}.yaml"  # a dry run changes nothing under results/
        assert f"vaebm data {name} --folder $(dirname data/{name}/manifest.json) --settings {settings}" in planned
        assert f"dataset: {dataset}" in (clone.folder / settings).read_text()


def test_a_prepared_set_outlives_its_raw_files(clone) -> None:
    """Absent files, another path, a newer settings file: nothing to do. Other settings: prepared again, or refused."""
    raw, target = clone.folder / "raw" / "folder", ("experiments=[folder]", "--", "data/folder/manifest.json")
    raw.mkdir(parents=True)
    for index, image in enumerate(np.random.RandomState(0).randint(0, 256, (250, 16, 16, 3)).astype(np.uint8)):
        Image.fromarray(image).save(raw / f"{index}.bmp")
    assert "data/folder: 250 images (train 225, heldout 25)" in clone.snakemake("--config", *target)
    raw.rename(clone.folder / "elsewhere")
    clone.edit(FOLDER, "path: raw/folder #", "path: raw/gone #")
    before = (clone.folder / "results/data/folder.yaml").stat().st_mtime_ns
    assert "Nothing to be done" in clone.snakemake("--config", *target)
    assert (clone.folder / "results/data/folder.yaml").stat().st_mtime_ns > before
    clone.edit(FOLDER, "heldout: 0.1", "heldout: 0.15")
    assert any(line.split() == ["data", "1"] for line in lines(clone, *target))
    shutil.rmtree(clone.folder / ".snakemake")
    clone.edit(FOLDER, "side: 16", "side: 32")
    (said,) = lines(clone, *target, fails=True)
    assert said.startswith(
        f"{FOLDER}: data: data/folder/manifest.json: expected images [32, 32, 3], as the section data says, "
        "found [16, 16, 3]"
    )
    clone.edit(FOLDER, "side: 32", "side: 16")
    clone.edit(FOLDER, "kid_subset_size: 100", "kid_subset_size: 226")
    (said,) = lines(clone, *target, fails=True)
    assert said.endswith(
        ": 225 images to train on, 25 held out: evaluation.kid_subset_size: expected at most the 225 training images, "
        "found 226"
    )
