"""The report: cards, plots, values of every seed, and what a browser requires."""

import copy
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from records import RECORD, TRAINED

from vaebm import plots
from vaebm.records.results import MetricValue, RunRecord
from vaebm.report.aggregate import over_seeds
from vaebm.report.captions import gallery
from vaebm.report.html import cards, page
from vaebm.report.paper import read_paper
from vaebm.report.rows import z_score
from vaebm.report.table import Measured, commands, lines

ROOT = Path(__file__).parents[2]
PAPER = read_paper(ROOT / "config" / "paper.yaml")
COMMANDS = commands(PAPER, ROOT / "config" / "experiments")
STEPS = {"counts": [0, 10], "FD-classifier": [20.0, 10.0], "energy": [0.5, None], "samples": 100}


def measured(variant="vaebm", seed=0, steps=None, chain_steps=10, **figures):
    """The metrics.json of one run; a figure is a value, or a value with its interval."""
    metrics = {}
    for name, figure in {"FD_classifier": 40.0, **figures}.items():
        value, interval = figure if isinstance(figure, tuple) else (figure, None)
        metrics[name.replace("_", "-")] = {
            "value": value,
            "samples": 10000,
            **({"interval": interval} if interval else {}),
        }
    trained = {"nvae": TRAINED}
    if chain_steps:
        trained["ebm"] = TRAINED | {
            "stage": "ebm",
            "steps": 5,
            "snapshot": 4,
            "events": [{"iteration": 3, "reason": "gap 12", "action": "restarted"}],
        }
    return RECORD | {
        "variant": variant,
        "seed": seed,
        "metrics": metrics,
        **({"steps": steps} if steps else {}),
        "chain": {"steps": chain_steps, "step_size": 0.04, "potential": "noise", "stretch": False},
        "training": trained,
    }


def record(*runs):
    """The record over the seeds of these runs."""
    return over_seeds([RunRecord.model_validate(run) for run in runs], "f" * 64, None)


class Outline(HTMLParser):
    """What a page is made of: open tags, sources, texts of images, ids and where links lead."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.problems = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def show(tmp_path, *records, experiment="digits"):
    """The page of the records, with nothing but the given folder beside."""
    return page(Measured({experiment: {one.variant: one for one in records}}, []), PAPER, COMMANDS, tmp_path)


def test_cards_say_how_much_better_as_far_as_it_can_be_told():
    """The ratio of distances, the difference of shares; nothing is called better within the uncertainty."""
    nvae = measured(
        "nvae", chain_steps=0, FD_classifier=(12.0, [11.5, 12.5]), recall_classifier=(0.80, [0.78, 0.82]), modes=900.0
    )
    vaebm = measured(FD_classifier=(3.0, [2.9, 3.1]), recall_classifier=(0.79, [0.77, 0.81]), modes=1000.0)
    variants = {"nvae": record(nvae), "vaebm": record(vaebm)}
    found = {card.metric: (card.before, card.after, card.change, card.verdict) for card in cards(variants)}
    assert found == {
        "FD-classifier ↓": ("12.0", "3.00", "× 0.250", "better"),
        "recall-classifier ↑": ("0.800", "0.790", "−0.010", "no difference beyond the intervals"),
        "modes ↑": ("900", "1000", "+100", "uncertainty unknown"),
    }
    turned = {"nvae": variants["vaebm"], "vaebm": variants["nvae"]}
    assert cards(turned)[0].verdict == "worse"


def test_cards_of_the_first_variant_and_one_of_each_further_one():
    runs = (
        measured("nvae", chain_steps=0, modes=900.0),
        measured(FD_classifier=10.0, modes=1000.0),
        measured("vaebm_persistent", FD_classifier=20.0, modes=990.0),
    )
    found = cards({run["variant"]: record(run) for run in runs})
    assert [(card.variant, card.metric, card.change) for card in found] == [
        ("vaebm", "FD-classifier ↓", "× 0.250"),
        ("vaebm", "modes ↑", "+100"),
        ("vaebm_persistent", "FD-classifier ↓", "× 0.500"),
    ]


@pytest.mark.parametrize(
    ("after", "verdict"), [(16.1, "no difference beyond twice the spread over seeds"), (15.9, "better")]
)
def test_better_means_beyond_two_spreads(after, verdict):
    """Spreads of √2 over two seeds each, 2 together, so from a difference of 4 on."""
    before, later = (
        [measured(name, seed, FD_classifier=mean + 2 * seed - 1) for seed in (0, 1)]
        for name, mean in (("nvae", 20.0), ("vaebm", after))
    )
    assert cards({"nvae": record(*before), "vaebm": record(*later)})[0].verdict == verdict


def test_a_difference_in_units_of_its_uncertainty():
    """√(3² + 4²) = 5; no units where the uncertainties are of different kinds or unknown."""
    rest = {"samples": 9, "seeds": [0, 1], "by_seed": []}

    def figure(value, spread, interval):
        return MetricValue(value=value, spread=spread, interval=interval, **rest)

    one, other = figure(10.0, 3.0, None), figure(25.0, 4.0, None)
    assert z_score(one, other) == (pytest.approx(3.0), "spread")
    halves = [figure(value, None, [value - 2 * half, value]) for value, half in ((10.0, 3.0), (25.0, 4.0))]
    assert z_score(*halves) == (pytest.approx(3.0), "interval")
    assert (
        z_score(one, halves[0]) is None
        and z_score(one, figure(10.0, None, None)) is None
        and z_score(figure(10.0, 0.0, None), figure(10.0, 0.0, None)) is None
    )


def test_every_picture_that_a_run_should_have_is_shown_or_named(tmp_path):
    """What a run has no figures of it needs no picture of."""
    full = record(measured(steps=STEPS, modes=990.0, AUROC_turned=0.8))
    wanted = [picture.path.as_posix() for picture in gallery(full)]
    measured_there = [
        "before",
        "after",
        "chain",
        "interpolations",
        "steps",
        "neighbours",
        "modes",
        "sets",
        "ood",
        "roc",
    ]
    assert set(wanted) == {f"vaebm/seed0/evaluation/pictures/{name}.png" for name in measured_there} | {
        f"vaebm/seed0/pictures/{name}.png" for name in ("energies", "chains", "curves")
    }
    plain = {picture.path.stem for picture in gallery(record(measured()))}
    assert plain == {Path(path).stem for path in wanted} - {"steps", "modes", "sets", "ood", "roc"}

    for path in wanted[2:]:
        plots.image_grid(torch.full((1, 1, 8, 8), 0.5), tmp_path / "digits" / path)
    text = show(tmp_path, full)
    outline = Outline(text)
    assert len(outline.all("img")) == len(wanted) - 2 + 1, "and the quality against cost"
    folder = "digits/vaebm/seed0/evaluation/pictures"
    missing = f"Before the chain ({folder}/before.png), After the chain ({folder}/after.png)"
    assert f"Missing though the run should have made them: {missing}." in text
    (tmp_path / folder / "interpolations.png").unlink()
    assert f"Missing though the run should have made them: {missing}." in show(tmp_path, full), "an earlier version's"


def test_images_of_another_program_are_named_with_their_hash_and_count(tmp_path):
    """In the report, in the remarks, in the table; without a training, and with the pictures of samples alone."""
    foreign = {"path": "drawn/pngs", "images": 1234, "sha256": "a" * 64}
    run = measured("drawn", chain_steps=0) | {"foreign": foreign, "training": {}, "without": {"ELBO": "no model"}}
    one = record(run)
    words = f"1,234 images of another program, drawn/pngs, SHA-256 {'a' * 64}"
    assert {picture.path.stem for picture in gallery(one)} == {"samples", "neighbours"}
    text = show(tmp_path, record(measured("nvae", chain_steps=0)), one)
    assert f"drawn: {words}." in text and "drawn has no ELBO: no model." in text and text.count(">Training<") == 1
    (line, *_) = lines(Measured({"digits": {"drawn": one}}, []), PAPER, COMMANDS)
    assert line["note"] == words and line["chain"] == "images of another program"


def test_an_energy_without_test_steps_is_shown_as_an_energy_and_a_gan_as_a_gan():
    """By what was trained, not by the length of the chain."""
    energy = measured(chain_steps=0)
    energy["training"]["ebm"] = TRAINED | {"stage": "ebm"}
    gan = measured("wgan", chain_steps=0)
    gan["training"] = {"wgan": TRAINED | {"stage": "wgan"}}
    shown = [{picture.path.stem for picture in gallery(record(run))} for run in (energy, gan)]
    assert shown == [
        {"before", "after", "chain", "interpolations", "neighbours", "energies", "chains", "curves"},
        {"samples", "neighbours", "curves"},
    ]


def test_page_is_whole_and_can_be_read_by_everyone(tmp_path):
    """Closed tags, links that lead somewhere, texts for pictures, scopes for headers; no request leaves it."""
    for name in ("before", "after"):
        plots.image_grid(torch.full((1, 1, 8, 8), 0.5), tmp_path / f"digits/vaebm/seed0/evaluation/pictures/{name}.png")
    shown = tmp_path, record(measured("nvae", chain_steps=0)), record(measured(steps=STEPS))
    text = show(*shown)
    outline = Outline(text)
    assert outline.problems == [] and outline.open == []
    assert all(
        image["alt"] and image["src"].startswith("data:image/png;base64,") for image in outline.all("img")
    ) and outline.all("img")
    for linked in (outline, Outline(show(*shown, experiment="paper"))):
        ids = [attributes["id"] for _, attributes in linked.tags if "id" in attributes]
        assert len(ids) == len(set(ids)) and {link["href"].removeprefix("#") for link in linked.all("a")} <= set(ids)
    assert all("scope" in header for header in outline.all("th"))
    assert not outline.all("script") and not outline.all("link") and "http" not in text and "url(" not in text


def test_page_shows_every_seed_with_its_interval_and_the_steps_over_the_seeds(tmp_path):
    """Several seeds have a mean and a spread, no interval of the whole; the guard's deeds are told."""
    plots.image_grid(torch.full((1, 1, 8, 8), 0.5), tmp_path / "digits/vaebm/seed0/evaluation/pictures/steps.png")
    other = copy.deepcopy(STEPS) | {"FD-classifier": [24.0, 10.0]}
    text = show(
        tmp_path,
        record(
            measured(steps=STEPS, FD_classifier=(40.0, [39.0, 41.5])),
            measured(seed=1, steps=other, FD_classifier=(44.0, [43.0, 45.5])),
        ),
    )
    assert "± 2.8" in text and "40.00 [39.00, 41.50]" in text and "44.00 [43.00, 45.50]" in text
    assert text.index("± 2.8") < text.index("40.00 [39.00, 41.50]"), "in the table the mean, below it the seeds"
    assert "22.00 ± 2.8" in text and "10.00 ± 0" in text and "not finite" in text
    assert "Seed 1, iteration 3: gap 12: restarted." in text


def test_floors_stand_beside_their_metric(tmp_path):
    variants = [
        record(measured(name, chain_steps=steps, modes=990.0, **{"modes-floor": 999.954}))
        for name, steps in (("nvae", 0), ("vaebm", 10))
    ]
    text = show(tmp_path, *variants)
    assert "perfect sampler" in text and "999.95" in text and "modes-floor" not in text


def test_page_shows_every_score_of_detection_and_the_device_of_a_time(tmp_path):
    """Beside the scores' histograms, over the seeds; the table's families hold what stands among the metrics alone."""
    runs = []
    for seed in (0, 1):
        figures = {
            f"{metric}-svhn{score}": {"value": seed / 2, "samples": 9}
            for metric in ("AUROC", "AUPR", "FPR95")
            for score in ("", "-typicality")
        }
        run = measured(seed=seed, AUROC_svhn=seed / 2, FPR95_svhn=1 - seed / 2) | {
            "ood": {"sets": {}, "figures": figures}
        }
        run["metrics"]["seconds-per-50"] = {"value": 2.0, "samples": 10, "unit": f"seconds on {'AB'[seed]}"}
        runs.append(run)
        pictures = tmp_path / "digits" / "vaebm" / f"seed{seed}" / "evaluation" / "pictures"
        pictures.mkdir(parents=True)
        plots.image_grid(torch.rand(1, 1, 8, 8), pictures / "ood.png")
    html = page(Measured({"digits": {"vaebm": record(*runs)}}, []), PAPER, COMMANDS, tmp_path)
    beside = html[html.index("Out-of-distribution detection, digits") :]
    shown = re.sub(r"\s*<[^>]+>\s*", "|", beside[: beside.index("</table>")]).replace("||", "|")
    assert re.search(r"set, score\|+AUROC ↑\|+AUPR ↑\|+FPR95 ↓", shown), shown
    assert len(re.findall(r"svhn(-typicality)?(\|+0\.2500 ± 0\.35){3}", shown)) == 2, shown
    assert (
        "In seconds on A and seconds on B: seconds-per-50." in html
        and "Speed" in html
        and "FPR95-svhn ↓" in html.replace("−", "-")
    )


def test_samples_come_first_then_metrics_then_detection_then_training(tmp_path):
    """The order of the paper; each picture once, also those of the variant that is shown above the metrics."""
    variants = record(measured("nvae", chain_steps=0)), record(measured(AUROC_turned=0.8))
    for variant in variants:
        for picture in gallery(variant):
            plots.image_grid(torch.full((1, 1, 8, 8), 0.5), tmp_path / "digits" / picture.path)
    text = show(tmp_path, *variants)
    parts = [
        "<h4>Before the chain",
        "<h4>After the chain",
        'class="cards"',
        "All metrics",
        "<h4>ROC curves",
        "<h4>Training of",
    ]
    assert sorted(parts, key=text.index) == parts
    assert text.count("<h4>After the chain") == 1 and text.count("<h4>Samples of the NVAE") == 1
