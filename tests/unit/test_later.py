"""Settings added later: dumps omit them while they have their default; files are compared by content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import NonNegativeInt
from records import TRAINED

from vaebm.config import STAGES, EBMSettings, Experiment, SamplesSettings, Settings
from vaebm.config.base import later
from vaebm.config.experiment import with_changes
from vaebm.config.yaml_files import read_experiment, read_settings, read_yaml, write_settings
from vaebm.evaluation import inputs
from vaebm.records.training import TrainingRecord
from vaebm.system.errors import UserError

EXPERIMENTS = Path(__file__).parents[2] / "config" / "experiments"


class Group(Settings):
    size: NonNegativeInt = 1
    depth: NonNegativeInt = 1


class Added(SamplesSettings):
    positives: Literal["clean", "matched"] = later("clean")
    """Which positives."""
    optional: Group | None = later(None)
    group: Group = later(Group(size=5, depth=7))


class Outer(Settings):
    inner: Added
    number: NonNegativeInt = 3


class Mine(Experiment):
    samples: Added | None = None
    more: Group | None = later(None)


KNOWN = {
    "count": 7,
    "batch": 2,
    "shards": 1,
    "stretch": False,
    "precision": "float32",
    "chain": {"steps": 2, "step_size": 0.5},
}
ALL = {"positives": "matched", "optional": {"size": 2, "depth": 1}, "group": {"size": 5, "depth": 0}}


def test_a_dump_has_what_differs_from_the_default_alone() -> None:
    """Nested groups and JSON too; every part of a group that differs."""
    plain, full = Added.model_validate(KNOWN), Added.model_validate(KNOWN | ALL)
    assert plain.model_dump() == KNOWN == SamplesSettings.model_validate(KNOWN).model_dump()
    assert (
        Added.model_validate(
            KNOWN | {"positives": "clean", "optional": None, "group": {"size": 5, "depth": 7}}
        ).model_dump()
        == KNOWN
    )
    assert full.model_dump() == KNOWN | ALL and json.loads(full.model_dump_json(exclude={"group"})) == KNOWN | {
        "positives": "matched",
        "optional": ALL["optional"],
    }
    assert Outer(inner=plain).model_dump() == {"inner": KNOWN, "number": 3}
    assert Outer.model_validate(json.loads(Outer(inner=full).model_dump_json())) == Outer(inner=full)


def test_changes_reach_groups_that_a_dump_leaves_out() -> None:
    """The other settings of the group stay; those of an optional group that was none have the group's defaults."""
    new = with_changes(
        Added.model_validate(KNOWN),
        {"group": {"size": 6}, "optional": {"depth": 2}, "chain": {"steps": 3}},
        "variants.mine.samples",
    )
    assert (new.group, new.optional) == (Group(size=6, depth=7), Group(size=1, depth=2))
    assert (new.chain.steps, new.chain.step_size) == (3, 0.5)
    with pytest.raises(ValueError, match="variants.mine.samples.group.size: .*found -1"):
        with_changes(new, {"group": {"size": -1}}, "variants.mine.samples")


def test_hash_and_settings_files_stay_until_the_setting_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = read_experiment(EXPERIMENTS / "tiny.yaml")
    write_settings(experiment, tmp_path / "before", [0])
    monkeypatch.setitem(STAGES, "samples", Added)
    content = read_yaml(EXPERIMENTS / "tiny.yaml")
    mine = Mine.model_validate(content)
    assert mine.hash() == experiment.hash() != Mine.model_validate(content | {"more": {}}).hash()
    write_settings(mine, tmp_path / "now", [0])
    before, now = (
        {str(path.relative_to(tmp_path / name)): path.read_text() for path in (tmp_path / name).rglob("*.yaml")}
        for name in ("before", "now")
    )
    assert before == now
    other = Mine.model_validate(content | {"samples": content["samples"] | {"positives": "matched"}})
    varied = Mine.model_validate(
        content | {"variants": {"vaebm": {"samples": {"positives": "matched", "group": {"size": 6}}}}}
    )
    assert other.hash() != mine.hash()
    path = tmp_path / "now/vaebm/seed0/samples/samples.yaml"
    for one in (other, varied):
        write_settings(one, tmp_path / "now", [0])
        assert read_settings(path, Added) == (0, one.samples_of("vaebm")) and "positives: matched" in path.read_text()
    write_settings(mine, tmp_path / "now", [0])
    assert path.read_text() == before["vaebm/seed0/samples/samples.yaml"]


def test_the_schema_lists_it() -> None:
    properties = Added.model_json_schema()["properties"]
    assert properties["positives"] == {
        "default": "clean", "description": "Which positives.", "enum": ["clean", "matched"], "title": "Positives",
        "type": "string",
    }  # fmt: skip
    assert {"optional", "group"} < set(properties)


def test_a_settings_file_that_says_the_same_is_left_untouched(tmp_path: Path) -> None:
    """In another order, without a default, with a remark; one that says something else or nothing is written anew."""
    experiment = read_experiment(EXPERIMENTS / "tiny.yaml")
    assert experiment.ebm is not None
    write_settings(experiment, tmp_path, [3])
    path = tmp_path / "vaebm" / "seed3" / "ebm.yaml"
    written = path.read_text()
    content = yaml.safe_load(written)
    del content["ebm"]["training"]["flip"]
    same = "# a remark\n" + yaml.safe_dump(content, sort_keys=True)
    path.write_text(same)
    write_settings(experiment, tmp_path, [3])
    assert path.read_text() == same and read_settings(path, EBMSettings) == (3, experiment.ebm)
    others = [
        written.replace("seed: 3", seed) for seed in ("seed: 4", "seed: x", "seed: null", "seed: 3.0", "seed: [3]")
    ]
    for damaged in [
        *others,
        written.replace("flip: false", "flip: true"),
        written + "1: 2\n",
        written.replace("flip", "flap"),
        written[:100],
        "",
        "- 1",
        "a: [",
    ]:
        assert damaged != written
        path.write_text(damaged)
        write_settings(experiment, tmp_path, [3])
        assert path.read_text() == written
    path.write_bytes(b"\xff\x00")
    write_settings(experiment, tmp_path, [3])
    assert path.read_text() == written


def test_a_record_without_the_setting_is_that_of_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "samples", Added)
    record = TRAINED | {"stage": "samples", "settings": KNOWN, "data": "d" * 64}
    (tmp_path / "training.json").write_text(json.dumps(record))
    (tmp_path / "samples.yaml").write_text(yaml.safe_dump({"seed": 0, "samples": KNOWN | {"positives": "clean"}}))
    found = TrainingRecord.model_validate(TRAINED | {"stage": "samples"})
    assert inputs._training(tmp_path / "model.pt", TRAINED["model"], "d" * 64) == (found, Added.model_validate(KNOWN))
    (tmp_path / "samples.yaml").write_text(yaml.safe_dump({"seed": 0, "samples": KNOWN | {"positives": "matched"}}))
    with pytest.raises(UserError, match="found one trained with other settings"):
        inputs._training(tmp_path / "model.pt", TRAINED["model"], "d" * 64)
    (tmp_path / "training.json").write_text(json.dumps(record | {"settings": {}}))
    with pytest.raises(UserError, match="training.json: settings"):
        inputs._training(tmp_path / "model.pt", TRAINED["model"], "d" * 64)
