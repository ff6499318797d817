"""DVC: pinned data, `dvc repro` over the pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def test_a_clone_is_reproduced_and_stays_so(tiny_run):
    """`dvc repro` was the first command; a second one does nothing. dvc.lock exists and can be committed."""
    assert "Stage 'pipeline' didn't change, skipping" in tiny_run.run("dvc", "repro")
    assert "up to date" in tiny_run.run("dvc", "status")
    assert tiny_run.run("git", "status", "--porcelain").split() == ["??", "dvc.lock"]


def test_data_is_pinned_after_a_run(tiny_run):
    """The cache was filled with the bytes of the pin."""
    assert "up to date" in tiny_run.run("dvc", "status", "data.dvc")


def test_figures_are_metrics(tiny_run):
    """`dvc metrics` finds the numbers of the table."""
    table = json.loads((tiny_run.folder / "results" / "benchmarks.json").read_text())
    assert (
        json.loads(tiny_run.run("dvc", "metrics", "show", "--json"))[""]["data"]["results/benchmarks.json"]["data"]
        == table
    )
    assert "FD-classifier" in tiny_run.run("dvc", "metrics", "show", "--md")


def test_figures_are_a_plot(tiny_run, tmp_path):
    """`dvc plots show` without arguments makes a page with every measured value under the names of the table."""
    printed = tiny_run.run("dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    page = Path(printed.strip().removeprefix("file://")).read_text()
    (plot,) = json.loads(tiny_run.run("dvc", "plots", "show", "figures", "--json"))["data"]["figures"]
    chart = json.loads(tiny_run.run("dvc", "plots", "show", "figures", "--show-vega"))
    shown = {
        (row["variant"], row["metric"]): float(row["measured"])
        for row in chart["data"]["values"]
        if row["table"].startswith("measured") and row["measured"]
    }
    table = json.loads((tiny_run.folder / "results" / "benchmarks.json").read_text())["tiny"]
    assert shown == {
        (variant, metric): value for variant, figures in table.items() for metric, value in figures.items()
    }
    assert plot["revisions"] == ["workspace"] and "Figures of every model" in page
    filters = [step["filter"] for step in chart["transform"] if "filter" in step]
    assert filters == ["indexof(datum.table, 'measured') === 0 && datum['measured'] !== ''"]


def test_one_changed_setting_is_an_experiment_with_figures_and_a_difference(finished):
    """`dvc exp run -S` runs what reads the setting; `dvc metrics diff` and `dvc plots diff` compare with the commit."""
    finished.run("git", "add", "dvc.lock")
    finished.run("git", "commit", "--quiet", "--message", "figures")
    before = json.loads((finished.folder / "results" / "benchmarks.json").read_text())["tiny"]
    model = finished.folder / "results" / "tiny" / "vaebm" / "seed0" / "model.safetensors"
    trained = model.stat().st_mtime_ns
    printed = finished.run(
        "dvc", "exp", "run", "--name", "longer", "--set-param", "config/experiments/tiny.yaml:samples.chain.steps=3"
    )
    assert "Ran experiment(s): longer" in printed and model.stat().st_mtime_ns == trained
    assert "steps: 3" in (finished.folder / "config" / "experiments" / "tiny.yaml").read_text()
    after = json.loads((finished.folder / "results" / "benchmarks.json").read_text())["tiny"]
    changes = json.loads(finished.run("dvc", "metrics", "diff", "--json"))["results/benchmarks.json"]
    assert changes["tiny.vaebm.FD-classifier"] == {
        "old": before["vaebm"]["FD-classifier"],
        "new": after["vaebm"]["FD-classifier"],
        "diff": after["vaebm"]["FD-classifier"] - before["vaebm"]["FD-classifier"],
    }
    assert not any(name.startswith("tiny.nvae.") for name in changes)
    chart = json.loads(finished.run("dvc", "plots", "diff", "HEAD", "--targets", "figures", "--show-vega"))
    assert {row["rev"] for row in chart["data"]["values"]} == {"HEAD", "workspace"}
    assert "longer" in finished.run("dvc", "exp", "show", "--only-changed", "--csv")


def test_data_and_figures_go_to_a_remote_and_come_back(finished, tmp_path):
    """Push, remove, pull: the same bytes, and nothing has to run again."""
    finished.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    finished.run("dvc", "push")
    sets = [folder for folder in (finished.folder / "data").iterdir() if folder.is_dir()]
    paths = [*sets, *(finished.folder / "results" / name for name in ("benchmarks.json", "benchmarks.csv"))]
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    before = {file: file.read_bytes() for file in files}
    for path in (*paths, finished.folder / ".dvc" / "cache"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    finished.run("dvc", "pull")
    assert {file: file.read_bytes() for file in files} == before
    assert "up to date" in finished.run("dvc", "status") and finished.planned() == {}


def test_repro_after_a_change_keeps_results(finished):
    """Outputs persist: Snakemake finds them, and runs what reads the change."""
    model = finished.folder / "results" / "tiny" / "vaebm" / "seed0" / "model.safetensors"
    before = model.stat().st_mtime_ns
    with (finished.folder / "config" / "experiments" / "tiny.yaml").open("a") as file:
        file.write("# a remark\n")
    assert "Nothing to be done" in finished.run("dvc", "repro")
    assert model.stat().st_mtime_ns == before


def test_other_bytes_are_named_and_not_pinned(finished, python):
    """Neither data.dvc nor the cache changes."""
    labels, pins = finished.folder / "data" / "digits" / "labels.npy", finished.folder / "data.dvc"
    before = pins.read_bytes()
    labels.write_bytes(labels.read_bytes() + b"\0")
    printed = finished.run(*python("pin", "data/digits", "--pins", "data.dvc"), fails=True)
    assert printed.count("\n") == 1 and printed.startswith("data/digits: expected the bytes that data.dvc pins")
    assert pins.read_bytes() == before


def test_without_git_the_bytes_are_compared_all_the_same(finished, python):
    """DVC refuses to work there; one line says that the cache stays empty, and other bytes still stop the run."""
    shutil.rmtree(finished.folder / ".git")
    pin = python("pin", "data/digits", "--pins", "data.dvc")
    first, second = finished.run(*pin).splitlines()
    assert first == "data/digits: the bytes are those that data.dvc pins"
    assert second.startswith("data/digits: DVC's cache was not filled: ") and "git" in second
    (finished.folder / "data" / "digits" / "labels.npy").write_bytes(b"")
    assert "expected the bytes" in finished.run(*pin, fails=True)


def test_a_set_of_the_users_own_is_left_alone(finished, python):
    """One line says how to pin it, and that works beside data.dvc."""
    shutil.copytree(finished.folder / "data" / "digits", finished.folder / "data" / "mine")
    printed = finished.run(*python("pin", "data/mine", "--pins", "data.dvc"))
    assert printed.count("\n") == 1 and "`dvc add data/mine`" in printed
    finished.run("dvc", "add", "data/mine")
    assert "data/mine.dvc" in finished.run("git", "status", "--porcelain", "--untracked-files=all")
    assert "up to date" in finished.run("dvc", "status", "data.dvc", "data/mine.dvc")
