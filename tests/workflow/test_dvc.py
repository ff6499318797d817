"""DVC: pinned data, `dvc repro` over the pipeline."""

from __future__ import annotations

import shutil


def test_a_clone_is_reproduced_and_stays_so(tiny_run):
    """`dvc repro` was the first command; a second one does nothing. dvc.lock is there to be committed, by who wants to."""
    assert "Stage 'pipeline' didn't change, skipping" in tiny_run.run("dvc", "repro")
    assert "up to date" in tiny_run.run("dvc", "status")
    assert tiny_run.run("git", "status", "--porcelain").split() == ["??", "dvc.lock"]


def test_data_is_pinned_after_a_run(tiny_run):
    """The cache was filled with the bytes of the pin."""
    assert "up to date" in tiny_run.run("dvc", "status", "data.dvc")


def test_figures_are_metrics(tiny_run):
    """`dvc metrics` finds the numbers of the table."""
    assert "FD-classifier" in tiny_run.run("dvc", "metrics", "show", "--md")


def test_repro_after_a_change_keeps_results(finished):
    """Outputs persist: Snakemake finds them, and runs what reads the change."""
    model = finished.folder / "results" / "tiny" / "vaebm" / "seed0" / "model.pt"
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
