"""The blocks of the pages in docs/how-to, run in a copy of the project, to the end of the pipeline."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vaebm import VAEBM
from vaebm.config.layers import split_changes
from vaebm.config.yaml_files import read_experiment
from vaebm.samples import quantize_to_uint8

ROOT = Path(__file__).parents[2]
PAGES = {path: path.read_text() for path in sorted((ROOT / "docs/how-to").glob("[!_]*.md"))}
RECIPES = "\n## \n".join(PAGES.values())
MINE = "config/experiments/mine.yaml"


def blocks(heading, language):
    """The blocks of code in a language under a heading of the pages, in order."""
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", RECIPES, re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def shell(project, block, fails=False):
    """What a block of shell prints, run in the project with the project's own package."""
    return project.run("bash", "-euc", block, fails=fails, PYTHONPATH=str(project.folder))


def plug_in(project, name, heading):
    """Put the plug-in under a heading into plugins/, which no file of the package needs to know."""
    (program,) = blocks(heading, "python")
    (project.folder / "plugins").mkdir(exist_ok=True)
    (project.folder / f"plugins/{name}.py").write_text(program)


@pytest.fixture(scope="module")
def mine(tiny_run, tmp_path_factory):
    """A copy of the finished run in which the recipes were followed, up to the first run, which was killed.

    The experiment is a copy of `tiny`, which is fast and has no section `variants` that another could replace.
    """
    project = tiny_run.copy(tmp_path_factory.mktemp("recipes") / "project")
    copy, ask_and_run = blocks("Run your own experiment", "sh")
    shell(project, copy.replace("digits.yaml", "tiny.yaml"))

    variants, pooled = blocks("Change the energy network", "yaml")
    plug_in(project, "pooled", "Change the energy network")
    with (project.folder / MINE).open("a") as file:
        file.write(f"\n{variants}{pooled}")

    prepare, pin = blocks("Add a data set", "sh")
    plug_in(project, "patches", "Add a data set")
    project.edit(MINE, "dataset: digits", "dataset: patches")
    project.edit(MINE, ", photographs]", "]")
    shell(project, prepare)

    *asking, command = ask_and_run.splitlines()
    printed = shell(project, "\n".join(asking))
    assert "patches: 800 to train on, 120 held out" in printed and re.search(r"^ebm +3$", printed, re.MULTILINE), (
        printed
    )
    log = project.folder / "results/mine/nvae/seed0/nvae.log"
    with subprocess.Popen(
        ["bash", "-euc", command],
        cwd=project.folder,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while not log.exists():
            assert process.poll() is None, "the run ended before the NVAE's training began"
            time.sleep(0.02)
        subprocess.run(["kill", "-9", "--", f"-{process.pid}"], check=True)
    shell(project, pin)
    return project


@pytest.fixture(scope="module")
def finished_mine(mine):
    """The same, after the recipe for going on."""
    again, unlock = blocks("Resume", "sh")
    manifest = mine.folder / "data/patches/manifest.json"
    before = manifest.stat().st_mtime_ns
    assert "--unlock" in shell(mine, again, fails=True)
    shell(mine, unlock)
    shell(mine, again)
    assert manifest.stat().st_mtime_ns == before
    return mine


def test_own_experiment_data_set_and_energy_run_to_the_table(finished_mine):
    """Each variant has its figures; the narrow energy is the one that the recipe describes, on the new images."""
    results = finished_mine.folder / "results"
    figures = json.loads((results / "benchmarks.json").read_text())["mine"]
    assert set(figures) == {"nvae", "vaebm", "narrow", "pooled"}
    assert all(figure["FD-classifier"] > 0 for figure in figures.values())
    widths = {
        name: json.loads((results / "mine" / name / "seed0/training.json").read_text())["settings"]["network"]["widths"]
        for name in ("vaebm", "narrow")
    }
    assert widths == {"vaebm": [1, 1], "narrow": [1, 2]}
    manifest = json.loads((finished_mine.folder / "data/patches/manifest.json").read_text())
    assert (manifest["images"], manifest["shape"]) == (920, [8, 8, 1])


def test_own_metric_stands_in_the_table(finished_mine):
    """For every variant of the experiment, with what the recipe computes; marked as one where less is better."""
    plug_in(finished_mine, "grey_levels", "Add a metric")
    (named,) = blocks("Add a metric", "yaml")
    (again,) = blocks("Add a metric", "sh")
    finished_mine.edit(MINE, "turned]\n", f"turned]\n{named}")
    printed = shell(finished_mine, again)
    assert "rule evaluation:" in printed and "rule ebm:" not in printed
    figures = json.loads((finished_mine.folder / "results/benchmarks.json").read_text())["mine"]
    shards = sorted((finished_mine.folder / "results/mine/narrow/seed0/samples").glob("shard-*.npy"))
    images = [
        np.concatenate([np.load(shard) for shard in shards]),
        np.load(finished_mine.folder / "data/patches/images.npy")[:800],
    ]
    below = [
        np.cumsum(np.bincount(part.ravel(), minlength=256)) / part.size for part in images
    ]  # W1 is the area between the two
    assert figures["narrow"]["W1-grey-levels"] == pytest.approx(
        np.abs(below[0] - below[1]).sum(), rel=1e-9
    )  # float64 sums over 12,800 pixels
    assert all("W1-grey-levels" in variant for variant in figures.values())
    assert "W1-grey-levels ↓" in (finished_mine.folder / "results/benchmarks.md").read_text()


def test_pinned_patches_are_in_a_file_of_their_own_and_nothing_is_left_to_do(finished_mine):
    """What `dvc add` wrote, and that it disturbed neither data.dvc nor the run."""
    assert "path: patches" in (finished_mine.folder / "data/patches.dvc").read_text()
    assert (finished_mine.folder / "data.dvc").read_text() == (ROOT / "data.dvc").read_text()
    assert "Nothing to be done" in finished_mine.snakemake("--dry-run", "--config", "experiments=[mine]")


def test_results_are_read_as_the_page_says(finished_mine):
    """A column for each variant; samples of the new model and their scores."""
    table, model = blocks("Read the results", "python")
    printed = finished_mine.run(sys.executable, "-c", table)
    assert re.match(r"variant +narrow +nvae +pooled +vaebm\n", printed) and re.search(
        r"^FD-classifier( +\d+\.\d+){4}$", printed, re.MULTILINE
    ), printed
    assert finished_mine.run(sys.executable, "-c", model).startswith("(16, 1, 8, 8) [")


@pytest.mark.parametrize(("name", "sections"), [("digits", 0), ("digits_replay", 1)])
def test_variants_take_the_place_of_those_of_the_copied_experiment(name, sections, tmp_path):
    """They go to the end of `digits`, which has no such section, and replace one that is there."""
    variants, _ = blocks("Change the energy network", "yaml")
    shutil.copy(ROOT / "config/experiments/digits.yaml", tmp_path)
    copied = (ROOT / f"config/experiments/{name}.yaml").read_text()
    text, found = re.subn(r"(?ms)^variants:\n.*?(?=^\S|\Z)", lambda _: variants, copied)
    assert found == sections
    (tmp_path / "mine.yaml").write_text(text if found else f"{text}\n{variants}")
    experiment = read_experiment(tmp_path / "mine.yaml")
    assert experiment.models == ["nvae", "vaebm", "narrow"] and experiment.resources.benchmarks.mem_mb == 1000
    plain, narrow = (experiment.stage_of(name).settings for name in ("vaebm", "narrow"))
    changes = {"channels": 8, "widths": [1, 2], "down": [0]}
    assert plain == experiment.ebm and narrow == plain.model_copy(
        update={"network": plain.network.model_copy(update=changes)}
    )


def test_base_grid_and_changes_are_read(tmp_path):
    """The blocks that start from `digits`; the commands are Snakemake's as it would split them."""
    shutil.copy(ROOT / "config/experiments/digits.yaml", tmp_path)
    (base,), (grid,) = blocks("Start from another experiment", "yaml"), blocks("Try several values", "yaml")
    (tmp_path / "mine.yaml").write_text(f"{base}\n{grid}")
    found = read_experiment(tmp_path / "mine.yaml")
    assert found.samples.chain.steps == 20 and found.models[2:] == [f"sweep_{index}" for index in range(6)]
    assert all(found.same_energy(name) == "vaebm" for name in found.models[2:])
    (foreign,) = blocks("Measure images of another program", "yaml")
    (tmp_path / "mine.yaml").write_text(f"{base}\n{foreign}")
    assert read_experiment(tmp_path / "mine.yaml").models == ["nvae", "vaebm", "diffusion"]
    for block in blocks("Change a setting", "sh"):
        (value,) = re.findall(r"'set=(.*?)'$", block, re.MULTILINE)
        changes = [*split_changes(value), "ebm.network.down=[0]"]
        assert read_experiment(tmp_path / "mine.yaml", changes).samples.chain.steps == 20


def test_every_block_of_settings_is_an_experiment(tmp_path):
    """Added to an experiment that fits; other tests run those of plug-ins and weights, and `{...}` has no values."""
    for name in ("digits", "folder"):
        shutil.copy(ROOT / f"config/experiments/{name}.yaml", tmp_path)
    found = re.findall(r"^```yaml\n(.*?)^```$", RECIPES, re.MULTILINE | re.DOTALL)
    assert len(found) > 15
    for block in found:
        if any(word in block for word in ("pooled", "mine.pth", "W1-grey-levels", "resnet56", "{...}")):
            continue
        base = "" if block.startswith("base:") else f"base: {'folder' if 'dataset: ' in block else 'digits'}\n"
        (tmp_path / "block.yaml").write_text(f"{base}{'evaluation:' if block.startswith(' ') else ''}\n{block}")
        read_experiment(tmp_path / "block.yaml")


def test_links_lead_somewhere():
    """Files of the repository, and headings of the pages."""
    broken, links = [], 0
    for page in (*PAGES, ROOT / "docs/tutorial/digits.md", ROOT / "docs/reference/datasets.md"):
        for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
            links += 1
            path = (page.parent / target).resolve() if target else page
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE) if heading and path.exists() else []
            anchors = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
            if not path.exists() or (heading and heading not in anchors):
                broken.append(f"{page.name}: {target}#{heading}")
    assert links > 40 and broken == []


def test_a_model_and_its_images_travel(tiny_run, tmp_path):
    """The published folder draws the run's samples, and so do the exported files."""
    run = "results/tiny/vaebm"
    (publish,), (export,) = blocks("Publish a model", "sh"), blocks("Export images", "sh")
    publish = publish.replace(" digits-vaebm", f" {tmp_path}/model").replace("results/digits", "results/tiny")
    assert "`VAEBM.from_pretrained` loads it" in shell(tiny_run, publish)
    *_, npz = export.splitlines()  # tests/unit/test_export.py has the others
    shell(tiny_run, npz.replace("results/digits", "results/tiny").replace("samples.npz", f"{tmp_path}/samples.npz"))
    samples = np.load(tmp_path / "samples.npz")["arr_0"]
    model = VAEBM.from_pretrained(tmp_path / "model")
    drawn = quantize_to_uint8(model.sample(20, seed=0, batch=20)).numpy()
    # other batches round otherwise
    assert np.abs(drawn.astype(int) - samples[:20]).max() <= 1
    (block,) = blocks("Load a published model", "python")
    here: dict[str, torch.Tensor] = {}
    exec(block.replace("digits-vaebm", str(tmp_path / "model")), here)
    assert here["again"].shape == (64, 1, 8, 8) and here["paths"].shape == (8, 7, 1, 8, 8)
    card = (tmp_path / "model" / "README.md").read_text()
    record = json.loads((tiny_run.folder / run / "metrics.json").read_text())
    for text in ("license: apache-2.0", record["data"], record["runs"][0]["models"]["energy"], *record["metrics"]):
        assert text in card
