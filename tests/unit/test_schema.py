"""JSON Schema of the experiment files: in step with the program, neither laxer nor stricter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from vaebm.config import Experiment
from vaebm.config.defaults import defaults
from vaebm.config.schema import schema
from vaebm.config.yaml_files import read_experiment, read_yaml

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.json"
EXPERIMENTS = sorted((ROOT / "config" / "experiments").glob("*.yaml"))
GENERATED = schema()
WHOLE = read_experiment(ROOT / "config" / "experiments" / "digits_ablation.yaml").model_dump()


def problems(value: Any) -> list[str]:
    """Where the schema finds `value` at fault: path and rule."""
    return [
        f"{error.json_path} {error.validator}"
        for error in jsonschema.Draft202012Validator(GENERATED).iter_errors(value)
    ]


def test_file_is_in_step_with_the_settings() -> None:
    jsonschema.Draft202012Validator.check_schema(GENERATED)
    assert json.loads(SCHEMA.read_text()) == GENERATED, (
        f"write it anew: python -m vaebm.config.schema > {SCHEMA.relative_to(ROOT)}"
    )


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_files_name_the_schema_and_pass_it(path: Path) -> None:
    """Also as an editor reads them, which is YAML 1.2: the same values, numbers like 1e-2 included."""
    first = path.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == SCHEMA
    as_edited = YAML(typ="safe", pure=True).load(path.read_text())
    assert as_edited == read_yaml(path)
    assert problems(as_edited) == []


def at(value: Any, path: str) -> tuple[Any, str]:
    """The group of settings that holds the setting at `path`, and its name there."""
    *groups, last = path.split(".")
    for name in groups:
        value = value[name]
    return value, last


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("nvae.training.warmup_epoch", 5, "$.nvae.training additionalProperties"),
        ("nvae.training.epochs", "many", "$.nvae.training.epochs type"),
        ("nvae.training.epochs", 1e-2, "$.nvae.training.epochs type"),
        ("nvae.training.kl_balancing", "yes", "$.nvae.training.kl_balancing type"),
        ("nvae.training.learning_rate", 0, "$.nvae.training.learning_rate exclusiveMinimum"),
        ("nvae.network.architecture", "resnet", "$.nvae.network.architecture enum"),
        ("data.dataset", "letters", "$.data.dataset enum"),
        ("variants.ebm_pixels.ebm.chain.step", 5, "$.variants.ebm_pixels.ebm.chain additionalProperties"),
        ("variants.ebm_pixels.ebm.chain.steps", "5", "$.variants.ebm_pixels.ebm.chain.steps type"),
        ("variants.ebm_pixels.nvae", {}, "$.variants.ebm_pixels additionalProperties"),
        ("resources.data.gpu", 1, "$.resources.data additionalProperties"),
    ],
)
def test_mistakes_are_found(path: str, value: Any, problem: str) -> None:
    content = json.loads(json.dumps(WHOLE))
    group, name = at(content, path)
    group[name] = value
    assert problems(content) == [problem]


def test_files_name_only_what_differs_from_a_base_or_the_defaults() -> None:
    assert problems({"base": "digits", "samples": {"chain": {"steps": 3}}, "variants": {"mine": {}}}) == []
    assert problems({"data": {"dataset": "digits"}}) == []
    assert problems({"samples": {}}) == ["$ anyOf"]


def test_defaults_are_in_step_with_the_settings() -> None:
    """Those of every section; the file is YAML, and passes the schema as an experiment with what is required."""
    path = ROOT / "config" / "defaults.yaml"
    assert path.read_text() == defaults(), "write it anew: python -m vaebm.config.defaults > config/defaults.yaml"
    content = read_yaml(path)
    content["data"]["dataset"] = "cifar10"
    for section in ("prior", "ebm", "samples"):
        content[section]["chain"] = {"steps": 16, "step_size": 8e-5}
    content["evaluation"]["extractor"] = "inception"
    assert problems(content) == []
    mine = {"data": {"dataset": "cifar10"}, "evaluation": {"extractor": "inception"}}
    mine |= {section: {"chain": content[section]["chain"]} for section in ("prior", "ebm", "samples")}
    assert Experiment.model_validate(content) == Experiment.model_validate(mine)


def test_every_setting_is_explained() -> None:
    """An editor shows a sentence for each: its own, or that of the group of settings that it is."""
    groups = {"Experiment": GENERATED, **GENERATED["$defs"]}

    def explained(field: dict[str, Any]) -> bool:
        references = [
            option["$ref"].rpartition("/")[2] for option in (field, *field.get("anyOf", ())) if "$ref" in option
        ]
        return "description" in field or any("description" in groups[name] for name in references)

    settings = {
        f"{group}.{name}": field
        for group, definition in groups.items()
        for form in definition.get("anyOf", [definition])  # a text alone may stand for a group
        for name, field in {**definition, **form}.get("properties", {}).items()
    }
    assert len(settings) > 100 and [name for name, field in settings.items() if not explained(field)] == []


def test_settings_that_the_schema_passes_are_read(tmp_path: Path) -> None:
    """The schema's numbers are the program's: an integer where a float stands, a float written as 1e-2."""
    text = (ROOT / "config" / "experiments" / "tiny.yaml").read_text()
    text = text.replace("norm_weight: 1e-2", "norm_weight: 1").replace("energy_penalty: 0.01", "energy_penalty: 1e-2")
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    experiment = read_experiment(path)
    assert problems(read_yaml(path)) == []
    assert experiment.ebm is not None and (
        experiment.nvae.training.norm_weight,
        experiment.ebm.training.energy_penalty,
    ) == (1.0, 0.01)
