"""Two folders of results side by side, and the table as LaTeX."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from records import RECORD
from typer.testing import CliRunner

from vaebm.cli.commands import app
from vaebm.report import aggregate, compare
from vaebm.report.latex import PAGE, SYMBOLS, escape, width
from vaebm.system.errors import UserError
from vaebm.system.files import write_json

ROOT = Path(__file__).parents[2]
PAPER, EXPERIMENTS = ROOT / "config" / "paper.yaml", ROOT / "config" / "experiments"

RUN = RECORD | {
    "metrics": {
        "FD-classifier": {"value": 40.0, "samples": 10000, "interval": [37.0, 43.0]},
        "AUROC-turned": {"value": 0.8, "samples": 297},
        "modes": {"value": 990.0, "samples": 10000},
        "modes-floor": {"value": 999.954, "samples": 10000},
    }
}


def results(folder, *runs):
    """A folder of results that the stage wrote, of runs that differ from `RUN` in a few keys."""
    paths = []
    for changes in runs or [{}]:
        run = RUN | changes
        paths.append(folder / run["experiment"] / run["variant"] / f"seed{run['seed']}" / "evaluation" / "metrics.json")
        write_json(paths[-1], run)
    aggregate.run(paths, PAPER, EXPERIMENTS, folder)
    return folder


def distance(value, interval=None, samples=10000):
    """Metrics with another distance."""
    return {
        "metrics": RUN["metrics"]
        | {"FD-classifier": {"value": value, "samples": samples, **({"interval": interval} if interval else {})}}
    }


def compared(here, there):
    """The rows that `compare` writes, by variant and metric, and its text."""
    compare.run(here, there)
    frame = pd.read_csv(here / "comparison.csv")
    return {(row.variant, row.metric): row for row in frame.itertuples()}, (here / "comparison.md").read_text()


def test_results_beside_themselves_differ_in_nothing(tmp_path):
    here = results(tmp_path / "here")
    rows, text = compared(here, here)
    assert set(rows) == {("vaebm", "FD-classifier"), ("vaebm", "AUROC-turned"), ("vaebm", "modes")}, (
        "a floor is no figure of a model"
    )
    assert all(row.difference == 0 and row.comparable is True for row in rows.values())
    assert "Both come from the same origin." in text and "What differs" not in text


def test_differences_in_units_of_intervals_or_of_spreads(tmp_path):
    """Half-widths 3 and 4: 50 − 40 is two of their 5; over seeds ±√2 each: 8 is four of 2."""
    one, other = results(tmp_path / "one"), results(tmp_path / "other", distance(50.0, [46.0, 54.0], samples=5000))
    row = compared(one, other)[0]["vaebm", "FD-classifier"]
    assert (row.difference, row.unit, row.in_units) == (pytest.approx(10.0), "interval", pytest.approx(2.0))
    assert row.remark == "10,000 and 5,000 images"

    seeds = [
        results(tmp_path / f"seeds{mean}", *({"seed": seed, **distance(mean + 2 * seed)} for seed in (0, 1)))
        for mean in (10, 18)
    ]
    rows, text = compared(*seeds)
    row = rows["vaebm", "FD-classifier"]
    assert (row.here, row.there, row.unit, row.in_units) == (11.0, 19.0, "spread", pytest.approx(4.0))
    assert "+4.0 spreads" in text
    row = compared(one, seeds[0])[0]["vaebm", "FD-classifier"]
    assert row.difference == -29.0 and pd.isna(row.in_units), "an interval and a spread have no common unit"


@pytest.mark.parametrize(
    ("changes", "apart", "told"),
    [
        (
            {"data": "e" * 64},
            {"FD-classifier", "AUROC-turned", "modes"},
            "vaebm, data: dddddddddddd here, eeeeeeeeeeee there",
        ),
        (
            {"extractor": {**RUN["extractor"], "name": "classifier-4567"}},
            {"FD-classifier", "modes"},
            "vaebm, extractor: classifier-0123, ",
        ),
        (
            {"extractor": {**RUN["extractor"], "networks": 10}},
            {"FD-classifier", "modes"},
            "classifier-0123 of 10 networks, torch-fidelity 0.4.0 there",
        ),
        ({"commit": ["b" * 40]}, set(), "vaebm, commit: cccccccccccc here, bbbbbbbbbbbb there"),
        (
            {"chain": RUN["chain"] | {"steps": 20}},
            set(),
            "vaebm, chain: 10 steps of 0.04, potential noise here, 20 steps",
        ),
    ],
)
def test_figures_of_other_data_or_another_extractor_are_not_set_beside_each_other(tmp_path, changes, apart, told):
    """What else differs in their origin is what a comparison is made for: it is told."""
    rows, text = compared(results(tmp_path / "here"), results(tmp_path / "there", changes))
    assert {metric for (_, metric), row in rows.items() if pd.isna(row.difference)} == apart
    assert text.count("not comparable") == len(apart) and told in text


def test_figures_without_their_record_have_no_known_origin(tmp_path):
    """benchmarks.json alone, or beside a record of another run; what one side has alone is told."""
    here, there = results(tmp_path / "here"), results(tmp_path / "there", {}, {"variant": "other"})
    shutil.copy(there / "benchmarks.json", tmp_path / "figures.json")
    rows, text = compared(here, tmp_path / "figures.json")
    assert rows["vaebm", "FD-classifier"].comparable == "unknown" and rows["vaebm", "FD-classifier"].difference == 0
    assert "vaebm: origin unknown there" in text and "other: only there" in text
    assert rows["other", "modes"].there == 990 and pd.isna(rows["other", "modes"].here)

    record = json.loads((there / "digits/vaebm/metrics.json").read_text())
    record["metrics"]["FD-classifier"]["value"] = 41.0
    write_json(there / "digits/vaebm/metrics.json", record)
    assert "vaebm: origin unknown there" in compared(here, there)[1]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("none", None, "found nothing there"),
        ("folder", None, "found a folder without benchmarks.json"),
        ("file", "{", "found a damaged file"),
        ("list", "[]", "kind"),
    ],
)
def test_mistakes_are_one_line(tmp_path, name, content, found):
    if content is not None:
        (tmp_path / name).write_text(content)
    if name == "folder":
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=found) as told:
        compare.read_side(tmp_path / name)
    assert str(told.value).startswith(str(tmp_path / name)) and "\n" not in str(told.value)


def test_command_as_typed(tmp_path, monkeypatch):
    """In a project's folder: the comparison without any other argument, the table anew without any."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    results(tmp_path / "results")
    results(tmp_path / "other", distance(20.0))
    (tmp_path / "results" / "report.html").unlink()
    monkeypatch.chdir(tmp_path)

    def vaebm(*arguments):
        return CliRunner().invoke(app, ["benchmarks", *arguments])

    done = vaebm("--compare", "other")
    assert (
        done.exit_code == 0 and done.output == Path("results", "comparison.md").read_text() and "-20.0" in done.output
    )
    assert not Path("results", "report.html").exists(), "comparing writes no table"
    assert vaebm().exit_code == 0 and Path("results", "report.html").is_file()
    assert str(vaebm("--compare", "nowhere").exception).startswith(
        "nowhere: expected results to compare, found nothing there"
    )
    shutil.rmtree("results")
    assert str(vaebm().exception).startswith("results: expected the figures of at least one experiment, found none")


def tables(text):
    """The tabulars of a LaTeX text as rows, read strictly: known commands, closed environments, equal columns."""
    assert text.isascii(), set(re.findall(r"[^\x00-\x7f]", text))
    text = re.sub(r"(?m)^%.*\n", "", text)
    printing = {command for symbol in SYMBOLS.values() for command in re.findall(r"\\[a-z]+", symbol)}
    layout = {
        r"\begin",
        r"\end",
        r"\centering",
        r"\footnotesize",
        r"\setlength",
        r"\tabcolsep",
        r"\caption",
        r"\multicolumn",
    }
    layout |= {r"\toprule", r"\midrule", r"\cmidrule", r"\bottomrule", r"\makebox", r"\textwidth"}
    assert set(re.findall(r"\\[A-Za-z]+", text)) <= printing | layout
    assert set(re.findall(r"\\[^A-Za-z]", text)) <= {r"\\", r"\&", r"\%", r"\$", r"\#", r"\_", r"\{", r"\}"}
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        assert kind == "begin" or opened.pop() == name
        opened += [name] if kind == "begin" else []
    assert opened == []
    found = []
    assert text.count(r"\makebox[\textwidth][c]{%" + "\n" + r"\begin{tabular}") == text.count(r"\end{tabular}}")
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line.removesuffix(r" \\") for line in body.strip().splitlines() if not line.startswith("\\")]
        if rows[0].startswith(" &"):
            over = [int(span) for span in re.findall(r"& \\multicolumn\{(\d)\}", rows.pop(0))]
            assert 1 + sum(over) == len(columns)
        cells = [re.split(r"(?<!\\)&", row) for row in rows]
        assert all(
            len(row) == len(columns) and len(re.findall(r"(?<!\\)\$", cell)) % 2 == 0 for row in cells for cell in row
        )
        assert not re.search(r"(?<!\\)[#%^~]", "".join(rows)) and not re.search(r"(?<!\\)_", "".join(rows))
        found.append([[cell.strip() for cell in row] for row in cells])
    return found


def test_latex_holds_every_table_and_can_be_read_strictly(tmp_path):
    """Where there is a LaTeX, it also compiles with nothing but booktabs."""
    folder = results(tmp_path / "results", {}, {"variant": "nvae", **distance(80.0)})
    text = (folder / "benchmarks.tex").read_text()
    ours, *papers = tables(text)
    assert ours[0] == ["metric", "nvae", "vaebm", "vaebm / nvae", "perfect sampler", "images"]
    assert ours[1] == [r"FD-classifier $\downarrow$", "80.00", "40.00 [37.00, 43.00]", "0.500", "", "10,000"]
    assert ["modes $\\uparrow$", "990", "990", "", "999.95", "10,000"] in ours
    assert any(row[0] == "Unconditional CIFAR-10" and row[1] == "12.16 (B)" for row in papers[0])
    assert len(papers) == text.count(r"\begin{table}") - 1
    if compiler := shutil.which("pdflatex"):
        lines = ["\\documentclass{article}", "\\usepackage{booktabs}", "\\begin{document}", "\\input{benchmarks}"]
        (folder / "document.tex").write_text("\n".join([*lines, "\\end{document}\n"]))
        command = [compiler, "-draftmode", "-halt-on-error", "-interaction=nonstopmode", "document.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_latex_table_wider_than_a_page_goes_without_intervals(tmp_path):
    """Two variants of one seed keep the intervals; for five the caption refers to benchmarks.csv."""
    names = ("nvae", "vaebm", "ebm_pixels", "ebm_pixels_nvae", "wgan")
    figures = {
        name: {"value": 0.8123, "samples": 297, "interval": [0.8011, 0.8234]}
        for name in ("FD-classifier", "AUROC-interpolation-likelihood")
    }
    texts = {}
    for count in (2, 5):
        runs = [{"experiment": "digits_ablation", "variant": name, "metrics": figures} for name in names[:count]]
        texts[count] = (results(tmp_path / str(count), *runs) / "benchmarks.tex").read_text()
    two, five = tables(texts[2])[0], tables(texts[5])[0]
    assert two[1][1:3] == ["0.8123 [0.8011, 0.8234]"] * 2 and five[1][1:6] == ["0.8123"] * 5
    printed = [[re.sub(r"\\[a-z]*|\$", "", cell) for cell in row] for row in five]
    assert width(printed[0], printed[1:]) <= PAGE
    assert "intervals are in benchmarks.csv" in texts[5] and "intervals are in" not in texts[2]


def test_latex_prints_what_stands_there():
    assert (
        escape(r"a_b & 5% of {x} #1 ~^\ ")
        == r"a\_b \& 5\% of \{x\} \#1 \textasciitilde{}\textasciicircum{}\textbackslash{} "
    )
    assert (
        escape("-0.5 [-0.6, -0.4] ± 1.2e-05, KID-classifier")
        == r"$-$0.5 [$-$0.6, $-$0.4] $\pm$ 1.2e-05, KID-classifier"
    )
