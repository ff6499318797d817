"""Variants with an energy on noise, really run: with E(x) and without."""

from __future__ import annotations

import json

from vaebm import VAEBM
from vaebm.records.training import TrainingRecord

TINY = "config/experiments/tiny.yaml"
ADDED = """
prior:
  hidden: [16]
  chain: {steps: 3, step_size: 5e-2}
  iterations: 20
  batch: 32
  validate_every: 10

variants:
  vaebm: {}
  nvae_prior: {prior: true, energy: false}
  vaebm_prior: {prior: true}
"""


def test_the_energy_on_noise_is_trained_once_for_both_variants(finished, python):
    with (finished.folder / TINY).open("a") as file:
        file.write(ADDED)
    after = {"samples": 4, "evaluation": 2, "benchmarks": 1, "track": 1}
    assert finished.planned() == {"prior": 1, "same_energy": 1, "ebm": 1, **after}
    finished.snakemake()
    assert finished.planned() == {}

    results = finished.folder / "results/tiny"
    runs = {
        name: json.loads((results / name / "seed0/evaluation/metrics.json").read_text())
        for name in ("nvae_prior", "vaebm_prior")
    }
    hashes = runs["vaebm_prior"]["models"]
    assert {*hashes} == {"nvae", "energy", "prior", "classifier"} and runs["nvae_prior"][
        "models"
    ].items() < hashes.items()
    trained = TrainingRecord.model_validate_json((results / "vaebm_prior/seed0/training.json").read_bytes())
    assert trained.prior == hashes["prior"] and {*runs["vaebm_prior"]["training"]} == {"nvae", "ebm", "prior"}
    assert {"FD-classifier", "AUROC-turned", "AUROC-turned-energy"} <= {*runs["nvae_prior"]["metrics"]}
    shards = [results / name / "seed0/samples/shard-000.npy" for name in ("nvae", "vaebm", *runs)]
    assert len({shard.read_bytes() for shard in shards}) == 4
    for name in runs:
        model = VAEBM.from_results(results / name)
        assert model.prior is not None and (model.energy is None) == (name == "nvae_prior")
        finished.run(*python("publish", f"results/tiny/{name}", name))
        VAEBM.from_pretrained(finished.folder / name)
        assert f"tiny/{name}" in (finished.folder / name / "README.md").read_text()
    report = (finished.folder / "results/report.html").read_text()
    assert "Samples of the prior" in report and "Training of the energy on noise" in report
    mirrored = (results / "tracking.json").read_text()
    assert all(f'"{name}"' in mirrored for name in ("prior seed0", "prior nvae_prior seed0", "ebm vaebm_prior seed0"))

    finished.edit(TINY, "hidden: [16]", "hidden: [8]")
    assert finished.planned() == {"prior": 1, "same_energy": 1, "ebm": 1, **after}
