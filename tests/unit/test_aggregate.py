"""The table: rows, spreads, honest empty cells, and nothing from other settings."""

import copy
import json
import shutil
import statistics
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from records import RECORD

from vaebm import plots
from vaebm.config.yaml_files import read_experiment
from vaebm.records import metrics
from vaebm.report import aggregate
from vaebm.report.paper import read_paper
from vaebm.system.errors import UserError

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "config" / "paper.yaml"


class Project:
    """A folder with experiment files and results."""

    def __init__(self, folder):
        self.folder, self.results, self.experiments = folder, folder / "results", folder / "experiments"
        self.experiments.mkdir(parents=True)
        shutil.copy(ROOT / "config" / "experiments" / "digits.yaml", self.experiments)

    def metrics(self, value=40.0, **changes):
        """Write the metrics.json of one run."""
        record = copy.deepcopy(RECORD) | changes
        record["metrics"]["FD-classifier"]["value"] = value
        path = (
            self.results
            / record["experiment"]
            / record["variant"]
            / f"seed{record['seed']}"
            / "evaluation"
            / "metrics.json"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
        return path

    def run(self, *metrics):
        """Run the stage and read back its table."""
        aggregate.run(list(metrics), PAPER, self.experiments, self.results)
        return pd.read_csv(self.results / "benchmarks.csv")

    def text(self, name):
        """One of the files that the stage wrote."""
        return (self.results / name).read_text()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_mean_and_spread_over_the_seeds(project):
    values = {0: 40.0, 1: 31.5, 2: 55.25}
    frame = project.run(
        *(project.metrics(value, seed=seed) for seed, value in values.items()), project.metrics(126.0, variant="nvae")
    )
    row = frame[(frame.experiment == "digits") & (frame.variant == "vaebm") & (frame.metric == "FD-classifier")].iloc[0]
    assert row.measured == pytest.approx(statistics.mean(values.values()))
    assert row.spread == pytest.approx(statistics.stdev(values.values()))
    assert (row.samples, row.seeds) == (10000, "0 1 2")
    alone = frame[(frame.variant == "nvae") & (frame.metric == "FD-classifier")].iloc[0]
    assert alone.measured == 126.0 and pd.isna(alone.spread), "one seed has no spread"
    assert json.loads(project.text("benchmarks.json")) == {
        "digits": {
            "vaebm": {"FD-classifier": row.measured, "AUROC-turned": pytest.approx(0.8)},
            "nvae": {"FD-classifier": 126.0, "AUROC-turned": 0.8},
        }
    }
    over_seeds = json.loads(project.text("digits/vaebm/metrics.json"))
    figure = over_seeds["metrics"]["FD-classifier"]
    assert [figure[key] for key in ("value", "spread", "interval", "samples", "seeds")] == [
        row.measured,
        row.spread,
        None,
        10000,
        [0, 1, 2],
    ]
    assert {one["seed"]: one["value"] for one in figure["by_seed"]} == values


def test_a_measured_row_says_where_it_comes_from(project):
    (project.results / "digits").mkdir(parents=True)
    (project.results / "digits" / "tracking.json").write_text(json.dumps({"run": "f00d", "uri": "sqlite:///mlflow.db"}))
    frame = project.run(project.metrics(), project.metrics(seed=1, commit=["b" * 40], changed=True))
    row = frame[frame.metric == "FD-classifier"].iloc[0]
    assert row.extractor == "classifier-0123, torch-fidelity 0.4.0"
    assert row.chain == "10 steps of 0.04, potential noise"
    assert row.commit == f"{'b' * 40} {'c' * 40}" and bool(row.changed) is True
    assert (row.data, row.tracking) == ("d" * 64, "f00d")
    assert row.configuration == read_experiment(project.experiments / "digits.yaml").hash()
    markdown = project.text("benchmarks.md")
    assert "cccccccccccc + changes" in markdown and "f00d" in markdown
    assert "Real images, held out, score FD-classifier 8.700 (297 images)." in markdown


def test_figures_of_files_that_nobody_published_say_so(project):
    """In the column of the data, in every row."""
    table = project.run(project.metrics(users=True))
    rows = table[table["experiment"] == "digits"]
    assert len(rows) and set(rows["data"]) == {"user's files " + "d" * 64}
    assert "user's files dddddddddddd" in (project.results / "benchmarks.md").read_text()


def test_every_row_of_the_paper_stands_there_with_its_mark(project):
    frame = project.run(project.metrics())
    rows = [
        (t.title, r.model, m, f.value, f.mark)
        for t in read_paper(PAPER).tables
        for r in t.rows
        for m, f in r.figures.items()
    ]
    found = frame[frame.paper.notna()]
    assert list(zip(found.table, found.model, found.metric, found.paper, found.mark, strict=True)) == rows
    markdown, page = project.text("benchmarks.md"), project.text("report.html")
    for title, model, _, value, mark in rows:
        assert f"{value:g} ({mark})" in markdown and title in markdown and model in markdown and title in page


def test_what_was_not_measured_is_empty_and_says_how(project):
    shutil.copy(project.experiments / "digits.yaml", project.experiments / "celeba64.yaml")
    frame = project.run(project.metrics())
    paper = frame[frame.paper.notna()]
    assert paper.measured.isna().all() and paper.spread.isna().all(), "digits answer none of the paper's rows"
    notes = {(row.table, row.model): row.note for row in paper.itertuples()}
    assert notes["Leaderboards", "CelebA 64×64 (test)"] == "snakemake --config 'experiments=[celeba64]'"
    missing = notes["Leaderboards", "CIFAR-10 (test)"]
    assert missing == "snakemake --config 'experiments=[cifar10]', but cifar10 is not in config/experiments yet"
    assert notes["CIFAR-10, unconditional (Table 1)", "Glow"] == "not trained here"
    assert "<code>snakemake --config &#39;experiments=[celeba64]&#39;</code>" in project.text("report.html")
    shutil.copy(
        ROOT / "config" / "experiments" / "tiny.yaml", project.experiments / "cifar10.yaml"
    )  # it has no such variant
    frame = project.run(project.metrics())
    persistent = frame[(frame.model == "CIFAR-10 (test)")].iloc[0]
    assert persistent.note.endswith("once it has a variant vaebm_persistent")


def test_nothing_of_ours_is_called_fid(project):
    frame = project.run(project.metrics())
    assert not frame[frame.measured.notna()].metric.isin(["FID"]).any()


def test_a_row_of_the_paper_is_filled_by_the_run_that_measured_it_and_by_no_other(project):
    """By the same experiment, variant and metric; a distance in other features fills no FID."""
    for name in ("cifar10", "celeba64"):
        shutil.copy(project.experiments / "digits.yaml", project.experiments / f"{name}.yaml")
    figures = {"FD-classifier": {"value": 1.0, "samples": 10}, "AUROC-svhn": {"value": 0.75, "samples": 5}}
    frame = project.run(
        project.metrics(experiment="cifar10", metrics=figures),
        project.metrics(experiment="celeba64", metrics={**RECORD["metrics"]}),
    )
    paper = frame[frame.paper.notna()]
    filled = paper[paper.measured.notna()]
    assert set(zip(filled.model, filled.metric, filled.measured, strict=True)) == {
        ("Out-of-distribution detection, SVHN (test)", "AUROC-svhn", 0.75),
        ("VAEBM", "AUROC-svhn", 0.75),
    }
    unfilled = paper[paper.model == "CelebA 64×64 (test)"].iloc[0]
    assert unfilled.note == "celeba64/vaebm was measured, without FID"


def test_earlier_results_stay_while_their_settings_are_those_of_the_file(project):
    shutil.copy(project.experiments / "digits.yaml", project.experiments / "other.yaml")
    project.run(project.metrics(experiment="other"))
    frame = project.run(project.metrics())
    assert set(frame.experiment.dropna()) == {"digits", "other"}

    settings = yaml.safe_load((project.experiments / "other.yaml").read_text())
    settings["resources"]["nvae"]["threads"] = 2
    (project.experiments / "other.yaml").write_text(yaml.safe_dump(settings))
    assert set(project.run(project.metrics()).experiment.dropna()) == {"digits", "other"}, "threads change no figure"

    settings["nvae"]["training"]["epochs"] += 1
    (project.experiments / "other.yaml").write_text(yaml.safe_dump(settings))
    assert set(project.run(project.metrics()).experiment.dropna()) == {"digits"}
    assert "other/vaebm/metrics.json is left out: it was measured with other settings" in project.text("benchmarks.md")

    (project.experiments / "other.yaml").unlink()
    assert set(project.run(project.metrics()).experiment.dropna()) == {"digits"}
    assert "there is no other.yaml" in project.text("report.html")
    assert set(json.loads(project.text("benchmarks.json"))) == {"digits"}


@pytest.mark.parametrize("lacking", ["users", "runs", "without", "real", "by_seed", "steps"])
def test_a_record_of_another_version_is_left_out_with_a_note(project, lacking):
    shutil.copy(project.experiments / "digits.yaml", project.experiments / "other.yaml")
    project.run(project.metrics(experiment="other"))
    path = project.results / "other" / "vaebm" / "metrics.json"
    record = json.loads(path.read_text())
    for part in (record, record["metrics"]["FD-classifier"], record["runs"][0]):
        part.pop(lacking, None)
    path.write_text(json.dumps(record))
    assert set(project.run(project.metrics()).experiment.dropna()) == {"digits"}
    assert "other/vaebm/metrics.json is left out: another version of the program wrote it" in project.text(
        "benchmarks.md"
    )


def test_variants_stand_in_the_order_of_the_file_and_the_ratio_is_the_first_one_s(project):
    """Whichever was measured first; several variants take nothing from the first."""
    given = [("vaebm_persistent", 30.0), ("vaebm", 10.0), ("nvae", 40.0)]
    project.run(*(project.metrics(value, variant=name) for name, value in given))
    text = project.text("benchmarks.md")
    header, _, row = text[text.index("| metric") :].splitlines()[:3]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        "metric",
        "nvae",
        "vaebm",
        "vaebm_persistent",
        "vaebm / nvae",
        "images",
    ]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "FD-classifier ↓",
        "40.00",
        "10.00",
        "30.00",
        "0.250",
        "10,000",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "e" * 64},
        {"versions": {"torch": "2.14.0"}},
        {"chain": {"steps": 20, "step_size": 0.04, "potential": "noise", "stretch": False}},
    ],
)
def test_no_mean_over_seeds_that_do_not_belong_together(project, changes):
    with pytest.raises(UserError, match=f"digits/vaebm: expected the same {next(iter(changes))} for all seeds"):
        project.run(project.metrics(), project.metrics(seed=1, **changes))


@pytest.mark.parametrize(
    ("without", "reason"),
    [({}, aggregate.EARLIER), ({"density-classifier": "too few draws"}, "seed 0: too few draws")],
)
def test_a_metric_that_only_some_seeds_have_is_empty_with_the_reason(project, without, reason):
    """The reason of a seed, or that an earlier version evaluated it."""
    newer = RECORD["metrics"] | {"density-classifier": {"value": 0.9, "samples": 1000}}
    runs = project.metrics(30.0, without=without), project.metrics(40.0, seed=1, metrics=copy.deepcopy(newer))
    frame = project.run(*runs)
    ours = frame[frame.variant == "vaebm"].dropna(subset="measured")
    assert ours.measured.tolist() == [35.0, 0.8]
    assert frame[frame.metric == "density-classifier"].note.tolist() == [reason]


def test_mistakes_are_one_line(project):
    path = project.metrics()
    path.write_text('{"experiment": "digits"')
    with pytest.raises(UserError, match="damaged"):
        project.run(path)
    path.write_text(json.dumps({key: value for key, value in RECORD.items() if key != "users"}))
    with pytest.raises(UserError, match="found none of its users: remove the file and run again"):
        project.run(path)
    with pytest.raises(UserError, match="found no file"):
        project.run(project.results / "none.json")
    bad = project.folder / "paper.yaml"
    bad.write_text(
        yaml.safe_dump(
            {
                "tables": [
                    {
                        "title": "t",
                        "metrics": ["FID"],
                        "rows": [{"model": "m", "figures": {"IS": {"value": 1.0, "mark": "A"}}}],
                    }
                ]
            }
        )
    )
    with pytest.raises(UserError, match="expected metrics among .'FID'., found 'IS'"):
        read_paper(bad)
    assert not (project.results / "benchmarks.csv").exists()


def test_page_needs_nothing_beside_it_and_shows_the_pictures_that_there_are(project):
    for seed in (1, 2):
        for name in ("before", "after", "ood"):
            plots.image_grid(
                torch.full((1, 1, 8, 8), seed / 4),
                project.results / f"digits/vaebm/seed{seed}/evaluation/pictures/{name}.png",
            )
    project.run(project.metrics(seed=1), project.metrics(seed=2))
    page = project.text("report.html")
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 3, (
        "those of the first seed; missing ones are left out"
    )
    assert (
        "http://" not in page and "https://" not in page and "<script" not in page and str(project.folder) not in page
    )
    first = page
    project.run(project.metrics(seed=1), project.metrics(seed=2))
    assert project.text("report.html") == first, "no time in it"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (126.04, "126.0"),
        (8.7, "8.700"),
        (0.83, "0.8300"),
        (0, "0"),
        (12345.6, "12346"),
        (0.00012345, "1.234e-04"),
        (-1.5, "-1.500"),
    ],
)
def test_numbers_have_four_digits(value, text):
    assert metrics.number(value) == text


def test_the_paper_names_the_leaderboards():
    leaderboards = read_paper(PAPER).tables[0]
    values = [(row.model, metric, figure.value) for row in leaderboards.rows for metric, figure in row.figures.items()]
    assert len(values) == 10 and all(row.answer for row in leaderboards.rows)
    assert ("CIFAR-10 (test)", "FID", 12.19) in values and (
        "Out-of-distribution detection, CelebA (test)",
        "AUROC-celeba",
        0.77,
    ) in values


def test_a_figure_that_a_variant_cannot_have_is_empty_with_the_reason(project):
    """In the table of all lines, and below the table that is read."""
    reason = "a generator has no posterior"
    lacking = project.metrics(
        variant="wgan",
        metrics={"FD-classifier": {"value": 9.0, "samples": 10000}},
        without={"ELBO": reason, "AUROC-turned": reason},
    )
    frame = project.run(project.metrics(), lacking)
    rows = frame[(frame.model == "wgan") & (frame.metric == "ELBO")]
    assert len(rows) == 1 and rows.measured.isna().all() and rows.note.tolist() == [reason]
    assert f"wgan has no ELBO, AUROC-turned: {reason}." in (project.results / "benchmarks.md").read_text()
