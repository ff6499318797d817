"""What Snakemake says of data sets before anything starts: files that are not there, two sets in one place."""

from __future__ import annotations

import numpy as np

FOLDER = "config/experiments/folder.yaml"


def lines(project, *arguments: str, fails: bool = False) -> list[str]:
    printed = project.snakemake("--dry-run", "--config", *arguments, fails=fails)
    return [line for line in printed.splitlines() if not line.startswith("Using workflow specific profile")]


def test_a_folder_that_is_not_there_is_named_before_anything_starts(clone) -> None:
    (said,) = lines(clone, "experiments=[folder]", fails=True)
    assert said == f"{FOLDER}: data: raw/folder: expected a folder of pictures, found none; data.path names it"


def test_experiments_share_a_prepared_set_only_where_it_is_the_same(clone) -> None:
    """A set of one name and other settings is refused; under a name of its own it is planned beside, read by its settings file."""
    (clone.folder / "raw" / "folder").mkdir(parents=True)
    np.savez(clone.folder / "raw" / "mine.npz", images=np.zeros((1, 16, 16, 3), np.uint8), labels=np.zeros(1, int))
    text = (clone.folder / FOLDER).read_text()
    other = clone.folder / "config/experiments/other.yaml"
    other.write_text(text.replace("dataset: folder", "dataset: arrays").replace("raw/folder #", "raw/mine.npz #"))
    (said,) = lines(clone, "experiments=[folder,other]", fails=True)
    assert said == "config/experiments/other.yaml: data: another experiment has other settings for data/folder; give one of them a data.name of its own"
    other.write_text(other.read_text().replace("name: folder #", "name: mine #"))
    planned = "\n".join(lines(clone, "experiments=[folder,other]", "--printshellcmds"))
    for name, dataset in {"folder": "folder", "mine": "arrays"}.items():
        assert f"vaebm data {name} --folder data/{name} --settings results/data/{name}.yaml" in planned
        assert f"dataset: {dataset}" in (clone.folder / f"results/data/{name}.yaml").read_text()
