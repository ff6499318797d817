"""The configuration of a run: choices, checks and settings files, without Snakemake."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaebm.config.pipeline import choose, resolve
from vaebm.system.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's configuration, which is the current one."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(project: Path) -> list[str]:
    return sorted(str(path.relative_to(project)) for path in (project / "results").rglob("*.yaml"))


def replace(project: Path, name: str, old: str, new: str, source: str | None = None) -> None:
    """Write the experiment `name`, a copy of `source` with `new` in place of `old`."""
    text = (project / f"config/experiments/{source or name}.yaml").read_text()
    assert old in text
    (project / f"config/experiments/{name}.yaml").write_text(text.replace(old, new))


def problem(*names: str, write: bool = True) -> str:
    """Message about experiments, one line."""
    with pytest.raises(UserError) as error:
        resolve({"experiments": [*names]}, write)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_choose_lets_the_command_line_override() -> None:
    content = {"experiments": ["digits"], "seeds": [0]}
    assert choose(content, {}) == (["digits"], [0])
    assert choose(content, {"experiments": ["tiny", "digits"], "seeds": ["2", 1]}) == (["tiny", "digits"], [2, 1])


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (None, {}, "config.yaml: expected the keys experiments and seeds, found None"),
        ({"seed": 0}, {}, "config.yaml: seed: unknown key; keys that exist: experiments, seeds"),
        ({"experiments": ["a"], "seeds": [0]}, {"cores": 2}, "config.yaml: cores: unknown key"),
        ({"experiments": "a", "seeds": [0]}, {}, r"experiments: expected .* as \[digits\], found 'a'"),
        ({"experiments": ["a", "a"], "seeds": [0]}, {}, "experiments: expected a list of different names"),
        ({"experiments": [], "seeds": [0]}, {}, r"experiments: .*found \[\]"),
        ({"experiments": ["a"], "seeds": [0, 0]}, {}, r"seeds: .* as \[0, 1, 2\], found \[0, 0\]"),
        ({"experiments": ["a"], "seeds": [True]}, {}, "seeds: expected a list of different integers from 0"),
        ({"experiments": ["a"], "seeds": ["1"]}, {}, "seeds: expected a list of different integers from 0"),
        ({"experiments": ["a"]}, {"seeds": ["-1"]}, "seeds: expected a list of different integers from 0"),
        ({"experiments": ["a"]}, {}, "seeds: .*found None"),
    ],
)
def test_choose_refuses_other_values(content: Any, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(content, overrides)


def test_resolve_writes_settings_files_in_the_main_process_only(project: Path) -> None:
    tiny = {"experiments": ["tiny"], "seeds": [0, 1]}
    jobs = resolve(tiny, write=False)
    assert written(project) == []
    main = resolve(tiny, write=True)
    assert main[:3] == jobs[:3] and (list(main.experiments), main.seeds) == (["tiny"], [0, 1])
    assert {f"results/tiny/vaebm/seed{seed}/ebm.yaml" for seed in (0, 1)} < set(written(project))
    assert {name: data.prepared for name, data in main.datasets.items()} == {name: name for name in main.datasets}


def test_resolve_refuses_an_incomplete_experiment_after_writing_its_settings(project: Path) -> None:
    said = problem("tiny", "nvae_mnist")
    assert said.startswith("config/experiments/nvae_mnist.yaml: expected an experiment that Snakemake can run")
    assert "without a section ebm and without a section samples" in said and "`vaebm describe nvae_mnist`" in said
    assert "results/nvae_mnist/nvae/seed0/nvae.yaml" in written(project)


def test_resolve_names_absent_raw_files_unless_the_set_is_prepared(project: Path) -> None:
    where = "config/experiments/folder.yaml: data: "
    assert problem("folder") == f"{where}raw/folder: expected a folder of pictures, found none; data.path names it"
    assert list(resolve({"experiments": ["folder"]}, write=False).datasets) == ["folder"]
    (project / "data/folder").mkdir(parents=True)
    (project / "data/folder/manifest.json").write_text(
        '{"shape": [8, 8, 3], "splits": {"train": [0, 9], "heldout": [9, 12]}}'
    )
    assert problem("folder").startswith(f"{where}data/folder/manifest.json: expected images [16, 16, 3]")


def test_resolve_refuses_two_data_sets_of_one_name(project: Path) -> None:
    (project / "raw/folder").mkdir(parents=True)
    np.savez(project / "raw/mine.npz", images=np.zeros((1, 16, 16, 3), np.uint8), labels=np.zeros(1, int))
    replace(project, "other", "dataset: folder", "dataset: arrays", source="folder")
    replace(project, "other", "raw/folder #", "raw/mine.npz #")
    refused = "another experiment has other settings for data/"
    for write in (True, False):
        said = problem("folder", "other", write=write)
        assert said == f"config/experiments/other.yaml: data: {refused}folder; give one of them a data.name of its own"
    for name in ("here", "there"):
        replace(project, name, "dataset: digits", f"dataset: digits\n  path: {name}", source="tiny")
    assert problem("here", "there").endswith(f"{refused}digits; give both the same data.path")
    replace(project, "other", "name: folder #", "name: mine #")
    resolve({"experiments": ["folder", "other"]}, write=True)
    assert {"results/data/folder.yaml", "results/data/mine.yaml"} <= set(written(project))


def test_resolve_checks_the_weights_of_an_extractor(project: Path) -> None:
    (project / "raw/celeba64").mkdir(parents=True)
    replace(project, "celeba64", "evaluation:\n", "evaluation:\n  inception_weights: gone.pth\n")
    said = problem("celeba64")
    assert said.startswith("config/experiments/celeba64.yaml: evaluation: gone.pth: expected the weights of inception")


def test_changes_and_name_of_the_command_line(project: Path) -> None:
    """The options of the table's command are those of the shell; braces are doubled for Snakemake."""
    config = {"experiments": ["tiny"], "name": "tiny_few", "set": "[samples.shards=1, evaluation.ood=[turned]]"}
    found = resolve(config, write=True)
    assert [*found.experiments] == ["tiny_few"] and found.experiments["tiny_few"].samples.shards == 1  # type: ignore[union-attr]
    assert found.changes == " --set samples.shards=1 --set 'evaluation.ood=[turned]' --base tiny"
    assert "results/tiny_few/nvae/seed0/nvae.yaml" in written(project) and not (project / "results/tiny").exists()
    grid = "variants.vaebm.grid={samples.count: [100, 200]}"
    assert resolve({"experiments": ["tiny"], "set": [grid]}, write=False).changes == (
        " --set 'variants.vaebm.grid={{samples.count: [100, 200]}}'"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"set": 3}, r"set: expected a list as \[samples.chain.steps=40\], found 3"),
        ({"set": None}, "set: expected a list as"),
        ({"set": ["samples.chain.steps=many"]}, "set: samples.chain.steps: Input should be a valid integer"),
        ({"name": "digits"}, "name: digits is the experiment of config/experiments/digits.yaml; choose another"),
        ({"name": "a/b"}, "name: expected a name of letters .*; choose another"),
        ({"name": 40}, "name: expected a name with a letter, as digits_40, found 40"),
        ({"name": "both", "experiments": ["digits", "tiny"]}, "name: expected a single experiment, .* digits, tiny"),
    ],
)
def test_wrong_changes_are_one_line(config: dict[str, Any], message: str, project: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        resolve({"experiments": ["tiny"], **config}, write=True)
    assert "\n" not in str(error.value) and not (project / "results").exists()
