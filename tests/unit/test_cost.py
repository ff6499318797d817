"""Quality against cost: points of every variant, with a cost where one is known, in figure and table."""

from pathlib import Path

import pytest
from PIL import Image
from records import RECORD

from vaebm.plots import charts
from vaebm.records.results import RunRecord
from vaebm.report.aggregate import over_seeds
from vaebm.report.cost import curves, plot_cost
from vaebm.report.html import page
from vaebm.report.paper import read_paper
from vaebm.report.table import Measured, lines

PAPER = read_paper(Path(__file__).parents[2] / "config" / "paper.yaml")
COMMANDS = {row.answer: "" for table in PAPER.tables for row in table.rows if row.answer}
STEPS = {"counts": [0, 5, 10], "energy": [0.5, 0.1, None], "samples": 100}


def variants(costs=True, name="FD-classifier"):
    """Two seeds of VAEBM and of the NVAE."""
    runs = {"nvae": [], "vaebm": []}
    for seed in (0, 1):
        steps = STEPS | {name: [20.0 + seed, 10.0 + seed, 5.0]}
        steps |= {"gradients": [0, 5, 10], "seconds": [0.01, 0.03 + 0.02 * seed, 0.09]} if costs else {}
        for variant, found in runs.items():
            chained = variant == "vaebm"
            figures = {"FD-classifier": 4.0, "seconds-per-50": 5.0 if chained else 1.0}
            run = RECORD | {"variant": variant, "seed": seed, "chain": RECORD["chain"] | {"steps": 10 * chained}}
            run |= {"metrics": {key: {"value": value, "samples": 10000} for key, value in figures.items()}}
            found.append(RunRecord.model_validate(run | ({"steps": steps} if chained else {})))
    return {variant: over_seeds(found, "f" * 64, None) for variant, found in runs.items()}


def test_points_are_means_over_the_seeds_with_their_costs():
    nvae, along, whole = curves(variants())
    assert (nvae.variant, nvae.samples, nvae.points) == ("nvae", 10000, [(0, 4.0, 0.0, 0, 0.02)])
    assert along.samples == 100 and [point[:2] for point in along.points] == [(0, 20.5), (5, 10.5), (10, 5.0)]
    assert [point.gradients for point in along.points] == [0, 5, 10]
    assert [point.seconds for point in along.points] == pytest.approx([0.01, 0.04, 0.09])
    assert along.points[0].spread == pytest.approx(0.5**0.5) and whole.points == [(10, 4.0, 0.0, 10, 0.1)]
    assert curves({"nvae": variants()["nvae"]}) == []


def test_results_of_earlier_versions_have_steps_without_seconds():
    """A Langevin step is one gradient; of another kernel nothing is known."""
    earlier = variants(costs=False)
    assert [point[3:] for point in curves(earlier)[1].points] == [(0, None), (5, None), (10, None)]
    other = earlier["vaebm"].chain.model_copy(update={"kernel": "mine"})
    found = curves({"vaebm": earlier["vaebm"].model_copy(update={"chain": other})})
    assert {point.gradients for curve in found for point in curve.points} == {None}
    dumped = earlier["vaebm"].model_dump()["runs"][0]["steps"]
    assert dumped.keys() == {"counts", "FD-classifier", "energy", "samples"}


def test_table_has_a_line_for_each_point():
    found = lines(Measured({"digits": variants()}, []), PAPER, COMMANDS)
    rows = [line for line in found if line["table"] == "quality against cost: digits"]
    shown = [(line["variant"], line["chain"].split(",")[0], line["gradients"], line["samples"]) for line in rows]
    steps = [("no chain", 0), ("5 steps of 0.04", 5), ("10 steps of 0.04", 10)]
    expected = [("vaebm", chain, gradients, 100) for chain, gradients in steps]
    assert shown == [("nvae", "no chain", 0, 10000), *expected, ("vaebm", "10 steps of 0.04", 10, 10000)]
    assert [line["seconds"] for line in rows] == pytest.approx([0.02, 0.01, 0.04, 0.09, 0.1])


def test_figure_has_every_curve_in_both_panels_and_the_papers_points(tmp_path, monkeypatch):
    drawn = []
    original = charts.Axes.errorbar
    monkeypatch.setattr(
        charts.Axes,
        "errorbar",
        lambda self, x, y, **style: drawn.append((style["label"], list(x), list(y))) or original(self, x, y, **style),
    )
    assert plot_cost(variants(), PAPER, "digits", tmp_path / "cost.png")
    names = ["nvae, 10,000 images", "vaebm, 100 images", "vaebm, 10,000 images"]
    assert [name for name, *_ in drawn] == 2 * names and drawn[4][1:] == ([0, 5, 10], [20.5, 10.5, 5.0])
    assert Image.open(tmp_path / "cost.png").size[0] > 1000
    drawn.clear()
    fid = {
        name: one.model_copy(
            update={
                "extractor": one.extractor.model_copy(update={"kind": "inception"}),
                "runs": [
                    run.model_copy(update={"steps": run.steps and run.steps.model_copy(update={"metric": "FID"})})
                    for run in one.runs
                ],
            }
        )
        for name, one in variants().items()
    }
    assert plot_cost(fid, PAPER, "cifar10", tmp_path / "fid.png")
    published = {name: (x, y) for name, x, y in drawn[: len(drawn) // 2]}
    assert published["VAEBM, published, another device"] == ([8.79 / 50], [12.19])
    assert not plot_cost({"nvae": variants()["nvae"]}, PAPER, "digits", tmp_path / "none.png")


def test_page_shows_the_figure_once_for_an_experiment_that_has_it(tmp_path):
    text = page(Measured({"digits": variants()}, []), PAPER, COMMANDS, tmp_path)
    assert text.count("<h3>Quality against cost</h3>") == 1 and text.count('alt="Quality against cost, digits"') == 1
    alone = {"digits": {"nvae": variants()["nvae"]}}
    assert "Quality against cost" not in page(Measured(alone, []), PAPER, COMMANDS, tmp_path)
