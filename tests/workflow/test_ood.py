"""OOD sets: prepared by the pipeline, used by the evaluation, checked before anything starts."""

import json
import re

import numpy as np

TINY = "config/experiments/tiny.yaml"
MINE = (
    "  ood:\n    - interpolation\n    - turned\n    - photographs\n    - dataset: arrays\n      path: raw/mine.npz\n"
    "      name: mine\n      side: 16\n      channels: 1\n      heldout: 1\n"
)


def detection_of(printed):
    """Inputs and command of the jobs `ood` that are planned; evaluations do not wait for their sets."""
    assert not any("--ood" in command for command in re.findall(r"python -m vaebm evaluation .*", printed))
    jobs = re.findall(r"rule ood:\n    input: (.*)\n", printed)
    return jobs, re.findall(r"python -m vaebm ood .*", printed)


def test_arrays_are_asked_for_prepared_and_told_apart(finished):
    """First missing, then planned beside what is there, then run: no training and no sample is made anew."""
    finished.edit(TINY, "  ood: [interpolation, turned, photographs]\n", MINE)
    said = finished.snakemake("--dry-run", fails=True).splitlines()[-1]
    assert said == f"{TINY}: evaluation.ood: raw/mine.npz: expected a file .npz, found none; path names it"
    (finished.folder / "raw").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), dtype=np.uint8)
    np.savez(finished.folder / "raw/mine.npz", images=images, labels=np.zeros(40, int))
    assert finished.planned() == {"data": 1, "pin": 1, "evaluation": 2, "ood": 2, "benchmarks": 1, "track": 1}
    jobs, commands = detection_of(finished.snakemake("--dry-run", "--printshellcmds"))
    assert len(jobs) == 2 and all(
        "data/mine/manifest.json" in job and "data/mine/images.npy" in job and "mine.pinned" in job for job in jobs
    )
    assert all("--ood data/mine/manifest.json" in command for command in commands)
    finished.snakemake()
    assert finished.planned() == {}
    folder = finished.folder / "results/tiny/vaebm/seed0/evaluation"
    measured, found = (json.loads((folder / name).read_text()) for name in ("metrics.json", "ood.json"))
    assert measured["ood"] is None and "seconds-per-50" in measured["metrics"]
    assert found["ood"]["sets"]["mine"] | {"data": ""} == {
        "images": 40,
        "data": "",
        "heldout": 40,
        "side": 16,
        "users": True,
    }
    inside = {"AUROC-mine", "AUROC-mine-energy", "AUPR-mine", "FPR95-mine", "AUROC-turned"}
    over_seeds = json.loads((finished.folder / "results/tiny/vaebm/metrics.json").read_text())
    assert inside <= set(found["metrics"]) and inside | {"seconds-per-50"} <= set(over_seeds["metrics"])
    assert over_seeds["runs"][0]["ood"]["sets"].keys() == {"interpolation", "turned", "photographs", "mine"}
    assert {"AUROC-mine-typicality", "AUPR-mine-likelihood-elbo", "FPR95-turned-elbo"} <= set(
        found["ood"]["figures"]
    ) - set(found["metrics"])
    (finished.folder / "raw/mine.npz").rename(finished.folder / "raw/other.npz")
    finished.edit(TINY, "raw/mine.npz", "raw/other.npz")
    assert finished.planned() == {}, "another place of the same files"
    for shard in (finished.folder / "results").glob("tiny/*/seed0/samples/*.json"):
        shard.unlink()
    assert finished.planned() == {}, "samples without a record of their time are as good"


def test_published_sets_are_planned_where_their_files_are(clone):
    """CelebA at another path, SVHN downloaded; a set that two experiments share is prepared once."""
    text = (clone.folder / "config/experiments/tiny.yaml").read_text()
    colour = text.replace("dataset: digits", "dataset: cifar10").replace(
        "[interpolation, turned, photographs]", "[interpolation, svhn, {dataset: celeba64, path: faces}]"
    )
    for name in ("one", "two"):
        (clone.folder / f"config/experiments/{name}.yaml").write_text(colour)
    said = clone.snakemake("--dry-run", "--config", "experiments=[one]", fails=True)
    assert (
        "one.yaml: evaluation.ood: faces: expected list_eval_partition.txt beside" in said
        and said.rstrip().endswith("and path names another place")
    )
    (clone.folder / "faces/img_align_celeba").mkdir(parents=True)
    (clone.folder / "faces/list_eval_partition.txt").touch()
    printed = clone.snakemake("--dry-run", "--printshellcmds", "--config", "experiments=[one,two]")
    jobs, commands = detection_of(printed)
    assert len(jobs) == 4 and all(
        "--ood data/svhn/manifest.json --ood data/celeba64/manifest.json" in command for command in commands
    )
    assert all(len(re.findall(f"vaebm data {name} ", printed)) == 1 for name in ("cifar10", "svhn", "celeba64"))
