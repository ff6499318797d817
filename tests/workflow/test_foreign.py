"""Images that another program drew, as variants of a finished run."""

from __future__ import annotations

import json

from vaebm.records.metrics import metric

TINY = "config/experiments/tiny.yaml"
RUN = "results/tiny/vaebm/seed0"


def test_exported_images_have_the_figures_of_their_run_to_the_last_digit(finished, python):
    """All that need no model, of a folder of PNG files and of a .npz file, in the table, the report and MLflow."""
    finished.run(*python("export", f"{RUN}/samples", "pngs"))
    finished.run(*python("export", f"{RUN}/samples", "--npz", "samples.npz"))
    with (finished.folder / TINY).open("a") as file:
        file.write("\nvariants:\n  vaebm: {}\n  pngs: {images: pngs}\n  npz: {images: samples.npz}\n")
    after = {"benchmarks": 1, "track": 1}
    two_seeds = finished.planned("--config", "seeds=[0,1]")
    assert two_seeds == {"nvae": 1, "ebm": 1, "samples": 4, "evaluation": 2, "foreign_evaluation": 2, **after}
    assert finished.planned() == {"foreign_evaluation": 2, **after}
    assert "models    nvae, vaebm, pngs, npz" in finished.run(*python("describe", "tiny"))
    finished.snakemake()

    results = finished.folder / "results"
    own = json.loads((finished.folder / RUN / "evaluation/metrics.json").read_text())
    for name in ("pngs", "npz"):
        record = json.loads((results / f"tiny/{name}/seed0/evaluation/metrics.json").read_text())
        needed = ("model", "clock")
        alone = {key: one for key, one in own["metrics"].items() if metric(key).measured_with not in needed}
        assert record["metrics"] == alone and len(alone) > 6 and record["real"] == own["real"]
        assert {"ELBO", "AUROC-turned", "seconds-per-50"} <= {*record["without"]}
        assert record["foreign"]["images"] == 200 and record["training"] == {} and record["ood"] is None
        over_seeds = json.loads((results / f"tiny/{name}/metrics.json").read_text())
        assert all(one["spread"] is None for one in over_seeds["metrics"].values())
        for page in ("benchmarks.md", "report.html"):
            text = (results / page).read_text()
            assert f"{name}: 200 images of another program, " in text and record["foreign"]["sha256"] in text
        own_picture = (finished.folder / RUN / "evaluation/pictures/neighbours.png").read_bytes()
        assert (results / f"tiny/{name}/seed0/evaluation/pictures/neighbours.png").read_bytes() == own_picture
    assert '"evaluation pngs seed0"' in (results / "tiny/tracking.json").read_text()

    assert finished.planned() == {}
    picture = finished.folder / "pngs/000007.png"
    picture.write_bytes((finished.folder / "pngs/000008.png").read_bytes())
    assert finished.planned() == {"foreign_evaluation": 1, **after}
    finished.edit(TINY, "kid_subset_size: 50", "kid_subset_size: 201")
    assert "kid_subset_size: expected at most the 200 samples" in finished.snakemake("--dry-run", fails=True)
    finished.edit(TINY, "count: 200", "count: 201")
    refused = finished.snakemake("--until", "foreign_evaluation", fails=True)
    assert "evaluation.kid_subset_size: expected at most the 200 images of pngs, found 201" in refused


def test_missing_images_are_one_line(clone):
    with (clone.folder / TINY).open("a") as file:
        file.write("\nvariants:\n  drawn: {images: nowhere}\n")
    *_, line = clone.snakemake("--dry-run", "--config", "experiments=[tiny]", fails=True).splitlines()
    assert line.startswith(f"{TINY}: variants.drawn.images: nowhere: expected a folder") and line.endswith("found none")
