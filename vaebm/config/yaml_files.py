"""Experiment files and settings files: YAML read, checked and written; every mistake is one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from vaebm.config import STAGES, DataSettings, Experiment, S, Settings
from vaebm.system.errors import UserError

RESERVED = ("data",)
"""Names under results/ that no experiment can have."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2, as editors read it: `1e-2` is a number, `no` and `1:30` are text. And no key twice."""

    yaml_implicit_resolvers = {
        "<": yaml.SafeLoader.yaml_implicit_resolvers["<"]
    }  # `<<`; PyYAML's others are of YAML 1.1

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))  # 017 is seventeen

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that a reader of YAML 1.1 or 1.2 would take for something else, so that both read what was written."""


for _tag, _text, _first in (
    ("null", "|~|null|Null|NULL", ["", *"~nN"]),
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    for _reader in (_Loader, _Dumper):
        _reader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_text})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file.

    Raises:
        UserError: there is no such file, or it is no YAML.
    """
    try:
        return yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: expected a YAML file, found none") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a YAML file, found something unreadable ({type(error).__name__})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise UserError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:  # PyYAML on a value that its tag does not fit, as !!int x
        raise UserError(
            f"{path}: not YAML: a value that is not what its tag says ({type(error).__name__}: {error})"
        ) from None


def validate(model: type[S], value: Any, where: str) -> S:
    """`value` as `model`; every error in it becomes one line that starts with `where`.

    Raises:
        UserError: unknown keys, missing keys, values of another type or out of range.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {_line(model, problem)}" for problem in error.errors())) from None


def _line(model: type[Settings], problem: Any) -> str:
    """One validation error in words: key, what was expected, what was found."""
    location = [
        part for part in problem["loc"] if not (isinstance(part, str) and part.startswith(("function-", "(")))
    ]  # pydantic's own, no keys
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; keys that exist: {', '.join(_fields(model, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: expected a value, found none"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    return f"{key}: {message}{found}" if key else message


def _fields(model: type[Settings], location: list[Any]) -> list[str]:
    """Names of the fields of the group of settings at `location`."""
    annotation: Any = model
    for part in location:
        annotation = (
            get_args(annotation)[-1]
            if get_origin(annotation) in (list, dict)
            else _group(annotation).model_fields[part].annotation
        )
    return list(_group(annotation).model_fields)


def _group(annotation: Any) -> Any:
    """The group of settings that an annotation allows, perhaps among other things."""
    return (
        annotation
        if hasattr(annotation, "model_fields")
        else next(filter(None, map(_group, get_args(annotation))), None)
    )


def read_experiment(path: Path) -> Experiment:
    """An experiment file.

    Raises:
        UserError: the file is missing, no YAML, or not an experiment.
    """
    if path.stem in RESERVED:
        raise UserError(
            f"{path}: an experiment cannot be called {path.stem!r}: results/{path.stem}/ holds something else; rename the file"
        )
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"{path}: there is no experiment {path.stem!r}; experiments that exist: {known}")
    return validate(Experiment, read_yaml(path), str(path))


def write_settings(experiment: Experiment, folder: Path, seeds: list[int]) -> None:
    """Write one settings file per stage that the experiment has, and seed, under `folder` (results/<experiment>), every default written out.

    Only the defaults of `later` settings are left out. A file that says the same, in whatever text, is left untouched, so that
    nothing that reads it runs again.
    """
    if (evaluation := experiment.evaluation) is not None:
        _write(folder / "classifier" / "classifier.yaml", 0, "classifier", evaluation.classifier)
        _write(folder / "reference" / f"{evaluation.extractor}.yaml", 0, "extractor", evaluation.extraction)
    for seed in seeds:
        for model in experiment.models:
            run, stage = folder / model / f"seed{seed}", experiment.stage_of(model)
            _write(run / f"{stage.name}.yaml", seed, stage.name, stage.settings)
            _write(run / "samples" / "samples.yaml", seed, "samples", experiment.samples_of(model))
            _write(
                run / "evaluation" / "evaluation.yaml",
                seed,
                "evaluation",
                experiment.evaluation and experiment.evaluation.without_paths,
            )


def write_data_settings(data: DataSettings, folder: Path) -> None:
    """Write the settings file of a data set under `folder` (results/data), unless its name says everything."""
    _write(folder / f"{data.prepared}.yaml", 0, "data", None if data.bare else data)


def check_prepared(experiment: Experiment, data: DataSettings, folder: Path) -> None:
    """Compare a data set that was prepared in `folder` with what the experiment says of it; nothing there is right as well.

    Raises:
        UserError: its manifest is damaged, its images have another shape, or there are too few for the experiment.
    """
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return
    try:
        content = json.loads(manifest.read_text())
        shape, splits = content["shape"], {split: last - first for split, (first, last) in content["splits"].items()}
        train, heldout = splits["train"], splits["heldout"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{manifest}: expected the manifest of a prepared data set, found something else; remove {folder}"
        ) from None
    facts = data.facts
    expected = [facts.side, facts.side, facts.channels]
    if shape != expected:
        raise UserError(
            f"{manifest}: expected images {expected}, as the section data says, found {shape}; remove {folder} or choose another data.name"
        )
    if data == experiment.data and (problem := experiment.too_few(train, heldout)):
        raise UserError(f"{manifest}: {train:,} images to train on, {heldout:,} held out: {problem}")


def _write(path: Path, seed: int, section: str, settings: Settings | None) -> None:
    if settings is None:
        return
    try:
        if read_settings(path, type(settings)) == (seed, settings):
            return
    except UserError:
        pass  # none there, a damaged one, or one of another version
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".yaml.tmp")
    temporary.write_text(yaml.dump({"seed": seed, section: settings.model_dump()}, Dumper=_Dumper, sort_keys=False))
    temporary.replace(path)


def read_settings(path: Path, model: type[S]) -> tuple[int, S]:
    """Seed and settings in a stage's settings file, as `write_settings` wrote it.

    Raises:
        UserError: the file is missing or damaged, or belongs to another stage.
    """
    section = next(name for name, known in STAGES.items() if known is model)
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) != {"seed", section}:
        raise UserError(
            f"{path}: expected the keys 'seed' and {section!r}, found {sorted(map(str, content)) if isinstance(content, dict) else content!r}"
        )
    if type(seed := content["seed"]) is not int:
        raise UserError(f"{path}: seed: expected an integer, found {seed!r}")
    return seed, validate(model, content[section], f"{path}: {section}")
