"""An experiment on stacks: its classifier judges channels, so it is trained on the set whose images they are."""

import re


def test_the_classifier_of_stacks_is_trained_on_what_is_stacked(clone):
    text = (
        (clone.folder / "config/experiments/tiny.yaml")
        .read_text()
        .replace("dataset: digits", "dataset: stacked_digits")
    )
    (clone.folder / "config/experiments/stacks.yaml").write_text(
        text.replace("ood: [interpolation, turned, photographs]", "ood: []")
    )
    planned = clone.snakemake("--dry-run", "--config", "experiments=[stacks]")
    inputs = dict(re.findall(r"rule (classifier|reference|nvae):\n    input: (.*)", planned))
    assert "data/digits/manifest.json" in inputs["classifier"] and "stacked" not in inputs["classifier"]
    for rule in ("reference", "nvae"):
        assert "data/stacked_digits/manifest.json" in inputs[rule] and "data/digits" not in inputs[rule]
    assert {"digits", "stacked_digits"} == set(re.findall(r"output: results/data/(\w+)\.pinned", planned))
