"""Experiments as deltas: `base`, defaults, settings of the command line, grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from experiments import EXPERIMENTS
from pydantic import BaseModel

from vaebm.config import Experiment
from vaebm.config.base import merge
from vaebm.config.layers import group_of, source, split_changes, values
from vaebm.config.yaml_files import read_experiment, read_layers, read_yaml
from vaebm.system.errors import UserError

ALWAYS = ("steps", "step_size")
"""Settings of chains, which a file may repeat."""


def repeated(content: dict[str, Any], model: type[BaseModel], inherited: BaseModel | None, key: str = "") -> list[str]:
    """Keys that a file gives the value that they have without it: that of the base, or the default."""
    found = []
    for name, value in content.items():
        field, group = model.model_fields[name], group_of(model.model_fields[name].annotation)
        before = getattr(inherited, name) if inherited is not None else None
        if inherited is None and not field.is_required():
            before = field.get_default()
        if isinstance(value, dict) and group is not None:
            found += repeated(value, group, before, f"{key}{name}.")
        elif not (name in ALWAYS and key.endswith("chain.")) and not (inherited is None and field.is_required()):
            plain = before.model_dump() if isinstance(before, BaseModel) else before
            found += [key + name] if plain == value else []
    return found


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_experiment_files_are_valid_and_repeat_nothing(path: Path) -> None:
    """Variants may: they say what they are."""
    experiment = read_experiment(path)
    assert yaml.safe_load(yaml.safe_dump(experiment.model_dump())) == experiment.model_dump()
    content = read_yaml(path)
    base = content.pop("base", None)
    content.pop("variants", None)
    inherited = None if base is None else read_experiment(path.with_name(f"{base}.yaml"))
    assert repeated(content, Experiment, inherited) == []


def test_experiment_files_are_short() -> None:
    assert sum(len(path.read_text().splitlines()) for path in EXPERIMENTS.glob("*.yaml")) <= 720


def write(folder: Path, **files: str) -> Path:
    """Experiment files in a folder; the path of the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


DIGITS = (EXPERIMENTS / "digits.yaml").read_text()


def test_base_is_followed_along_a_chain(tmp_path: Path) -> None:
    """Groups are merged, lists and variants replaced, null is a value."""
    own = "base: middle\nsamples: {chain: {steps: 40}}\nevaluation: {ood: [turned]}\n"
    middle = "base: digits\nebm: {replay: {capacity: 64}, training: {chain_every: 1}}\nvariants: {mine: {}}\n"
    middle += "samples: {count: 2000}\n"
    path = write(tmp_path, own=own, middle=middle, digits=DIGITS)
    plain, found = read_experiment(tmp_path / "digits.yaml"), read_experiment(path)
    assert found.samples and found.ebm and found.ebm.replay and found.evaluation and plain.samples
    assert (found.samples.chain.steps, found.samples.chain.step_size, found.samples.count) == (40, 5e-2, 2000)
    assert (found.ebm.replay.capacity, found.ebm.replay.probability) == (64, 0.6)
    assert found.evaluation.ood == ["turned"] and found.models == ["nvae", "mine"] and found.nvae == plain.nvae
    write(tmp_path, alone="base: own\nebm: null\nvariants: {vaebm: {}}\n")
    assert read_experiment(tmp_path / "alone.yaml").models == ["nvae"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "base: a"}, "a.yaml: base: expected a file that does not start from this one, found a → a"),
        ({"a": "base: b", "b": "base: c", "c": "base: b"}, "c.yaml: base: expected .*, found a → b → c → b"),
        ({"a": "base: c"}, "a.yaml: base: .*c.yaml: there is no experiment 'c'; experiments that exist: a"),
        ({"a": "base: 3"}, "a.yaml: base: expected the name of an experiment, found 3"),
        ({"a": "base: ../b"}, "a.yaml: base: name: expected a name of letters .*, found '../b'; choose another"),
        ({"a": "base: b", "b": "[1]"}, "b.yaml: the whole: |b.yaml: Input should be a valid dictionary"),
        ({"a": "base: b", "b": DIGITS.replace("latents: 4", "latents: x")}, "/b.yaml: nvae.network.latents: .*'x'"),
        (
            {"a": "base: b\nnvae: {networks: 3}", "b": DIGITS},
            "/a.yaml: nvae.networks: unknown key; keys that exist: checkpoint, network",
        ),
    ],
)
def test_mistake_in_a_chain_is_one_line_with_its_file(files: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_experiment(write(tmp_path, **files))
    assert "\n" not in str(error.value)


def test_each_value_has_its_source(tmp_path: Path) -> None:
    """Every setting is listed, also those that dumps omit."""
    path = write(tmp_path, own="base: digits\nsamples: {count: 2000}\n", digits=DIGITS)
    changes = ["samples.chain.steps=40", "ebm.network.widths=[1, 2]", "ebm.network.down=[0]"]
    layers, experiment = read_layers(path, changes), read_experiment(path, changes)
    found = dict(values(experiment))
    assert found["samples.chain.steps"] == 40 and found["ebm.network.widths"] == [1, 2]
    assert found["ebm.positives"] == "matched" and found["nvae.network.bits"] == 8 and len(found) > 100
    sources = {key: source(layers, key, "defaults") for key in found}
    assert sources["samples.chain.steps"] == "set" and sources["samples.count"] == str(path)
    assert sources["samples.batch"] == str(tmp_path / "digits.yaml") and sources["nvae.network.bits"] == "defaults"


def test_changes_are_what_the_file_could_say() -> None:
    path = EXPERIMENTS / "digits_replay.yaml"
    changes = ["variants.vaebm.samples.chain.steps=3", "ebm.training.learning_rate=1e-3", "evaluation.ood=[]"]
    found = read_experiment(path, [*changes, "variants.new.ebm.replay={}"])
    assert found.models == ["nvae", "vaebm", "vaebm_persistent", "new"]
    assert [found.samples_of(name).chain.steps for name in ("vaebm", "vaebm_persistent")] == [3, 8]  # type: ignore[union-attr]
    assert found.ebm and found.ebm.training.learning_rate == 1e-3 and found.evaluation and not found.evaluation.ood
    assert read_experiment(EXPERIMENTS / "digits.yaml", ["variants.new.samples.count=3000"]).models[1:] == [
        "vaebm",
        "new",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("samples.chain.stepz=3", "set: samples.chain.stepz: unknown key; nearest keys: samples.chain.step"),
        ("samples.chain.steps=x", "set: samples.chain.steps: Input should be a valid integer.*, found 'x'"),
        ("samples.chain.steps=-1", "set: samples.chain.steps: Input should be greater than or equal to 0, found -1"),
        ("samples.chain.steps", "set: expected settings as samples.chain.steps=40, found 'samples.chain.steps'"),
        ("ebm.network.widths=[1", "set: ebm.network.widths:1: not YAML"),
        ("nvae.network.crop=4", "set: nvae.network.crop: expected less than half of the images' 8 rows, found 4"),
        ("variants.vaebm.ebm.chian.steps=3", "unknown key; nearest keys: variants.vaebm.ebm.chain.steps, "),
        ("variants.vaebm.ebm.chain.steps=-3", "set: variants.vaebm.ebm.chain.steps: .*, found -3"),
        ("=3", "unknown key; nearest keys: "),
    ],
)
def test_wrong_change_is_one_line(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_experiment(EXPERIMENTS / "digits.yaml", [change])
    assert "\n" not in str(error.value) and str(error.value).startswith("set: ")


def test_changes_of_the_command_line_are_split() -> None:
    """Snakemake gives a list, or the text where a value is a list."""
    assert split_changes(["a=1", "b=2"]) == ["a=1", "b=2"] and split_changes("a=1") == ["a=1"]
    assert split_changes("[a=[1, 2], b={c: [3, 4]}, d=5]") == ["a=[1, 2]", "b={c: [3, 4]}", "d=5"]
    for wrong in (3, [], [{"a": "1"}], "", "[]", "[a=1,]", None):
        with pytest.raises(UserError, match="set: expected a list as"):
            split_changes(wrong)


def test_another_data_set_or_network_has_none_of_the_base_s_settings() -> None:
    base = {"data": {"dataset": "folder", "side": 32}, "network": {"channels": 8, "widths": [1]}}
    assert merge(base, {"data": {"dataset": "cifar10"}}) == base | {"data": {"dataset": "cifar10"}}
    assert merge(base, {"data": {"side": 64}})["data"] == {"dataset": "folder", "side": 64}
    assert merge(base, {"network": {"kind": "pooled"}})["network"] == {"kind": "pooled"}
    assert merge(base, {"network": {"kind": "residual", "channels": 4}})["network"]["widths"] == [1]


GRID = "base: digits\nvariants:\n  vaebm: {}\n  sweep:\n    grid: {%s}\n"


def test_grid_is_a_variant_for_each_combination(tmp_path: Path) -> None:
    """A grid over the samples takes the energy of `vaebm`; one over energies trains each once."""
    grid = "samples.chain.steps: [5, 10, 20], samples.chain.step_size: [1e-2, 4e-2]"
    found = read_experiment(write(tmp_path, mine=GRID % grid, digits=DIGITS))
    assert found.models == ["nvae", "vaebm", *(f"sweep_{index}" for index in range(6))]
    chains = [found.samples_of(name).chain for name in found.models[2:]]  # type: ignore[union-attr]
    assert [(one.steps, one.step_size) for one in chains] == [(k, s) for k in (5, 10, 20) for s in (1e-2, 4e-2)]
    assert [found.same_energy(name) for name in found.models] == [None, None, *["vaebm"] * 6]
    assert found.every_variant["sweep_3"].grid == {"samples.chain.steps": [10], "samples.chain.step_size": [4e-2]}
    assert Experiment.model_validate(found.model_dump()) == found
    grid = "ebm.training.learning_rate: [1e-4, 2e-4], samples.count: [2000, 3000]"
    found = read_experiment(write(tmp_path, mine=GRID % grid))
    energies = [found.same_energy(f"sweep_{index}") for index in range(4)]
    assert energies == [None, "sweep_0", "vaebm", "vaebm"], "2e-4 is the experiment's"
    lists = read_experiment(write(tmp_path, mine=GRID % "ebm.network.widths: [[1, 1, 2, 2], [1, 1, 1, 1]]"))
    assert lists.stage_of("sweep_1").settings.network.widths == [1, 1, 1, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("samples.chain.stepz: [1]", "variants.sweep_0.samples.chain.stepz: Extra inputs are not permitted"),
        ("samples.chain.steps: [1, x]", "variants.sweep_1.samples.chain.steps: .*, found 'x'"),
        ("samples.chain.steps: 1", "variants.sweep.grid.samples.chain.steps: Input should be a valid list, found 1"),
        ("samples.chain.steps: []", "variants.sweep.grid.samples.chain.steps: .*at least 1 item"),
        (
            "nvae.network.latents: [1]",
            "variants.sweep.grid: expected settings of ebm or samples.*'nvae.network.latents'",
        ),
    ],
)
def test_wrong_grid_is_one_line(grid: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_experiment(write(tmp_path, mine=GRID % grid, digits=DIGITS))
    assert "\n" not in str(error.value)
