"""Experiment files and settings files: read, checked and written as YAML; every error is one line."""

import json
import re
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError

from vaebm.config import STAGES, DataSettings, Experiment, S, Settings
from vaebm.system.errors import UserError
from vaebm.system.files import writing

RESERVED = ("data",)
"""Names under results/ that no experiment can have."""


class _Constructor(SafeConstructor):
    """Plain values of YAML 1.2, as editors read them, except that dates stay text."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _Dumper(yaml.SafeDumper):
    """Quotes text that a reader of YAML 1.1 or 1.2 would take for a number, so that both read the same values."""


_Dumper.add_implicit_resolver(  # numbers of YAML 1.2 only
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+)$"),
    [*"-+.0123456789"],
)


def read_yaml(path: Path) -> Any:
    """Plain values of a YAML 1.2 file.

    Raises:
        UserError: the file does not exist or is not YAML.
    """
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _Constructor
    try:
        return reader.load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: expected a YAML file, found none") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a YAML file, found something unreadable ({type(error).__name__})") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        problem = str(getattr(error, "problem", None) or error).partition(" with value")[0]  # of a duplicate key
        raise UserError(f"{where}: not YAML: {problem}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # a value like !!int x
        raise UserError(
            f"{path}: not YAML: a value that is not what its tag says ({type(error).__name__}: {error})"
        ) from None


def validate(model: type[S], value: Any, where: str) -> S:
    """`value` as `model`.

    Raises:
        UserError: unknown or missing keys, invalid values; one line per error, each starts with `where`.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {problem_line(model, problem)}" for problem in error.errors())) from None


def problem_line(model: type[BaseModel], problem: Any) -> str:
    """One validation error as text: key, expected, found."""
    internal = ("function-", "(")  # parts that pydantic adds to the keys
    location = [part for part in problem["loc"] if not str(part).startswith(internal)]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; keys that exist: {', '.join(_fields(model, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: expected a value, found none"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    return f"{key}: {message}{found}" if key else message


def _fields(model: type[BaseModel], location: list[Any]) -> list[str]:
    """Fields of the group of settings at `location`."""
    annotation: Any = model
    for part in location:
        annotation = (
            get_args(annotation)[-1]
            if get_origin(annotation) in (list, dict)
            else _group(annotation).model_fields[part].annotation
        )
    return list(_group(annotation).model_fields)


def _group(annotation: Any) -> Any:
    """Group of settings in an annotation, for example in a union."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next(filter(None, map(_group, get_args(annotation))), None)


def read_experiment(path: Path) -> Experiment:
    """Read an experiment file.

    Raises:
        UserError: the file does not exist, is not YAML, or is not an experiment.
    """
    if path.stem in RESERVED:
        raise UserError(
            f"{path}: an experiment cannot be called {path.stem!r}: results/{path.stem}/ holds something else; "
            "rename the file"
        )
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"{path}: there is no experiment {path.stem!r}; experiments that exist: {known}")
    return validate(Experiment, read_yaml(path), str(path))


def write_settings(experiment: Experiment, folder: Path, seeds: list[int]) -> None:
    """Write one settings file per stage and seed under `folder` (results/<experiment>), without defaults of `later`.

    A file with equal content, in any text, is not touched, so that nothing reruns.
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
    """Write the settings file of a data set under `folder` (results/data), unless it needs no files."""
    _write(folder / f"{data.prepared}.yaml", 0, "data", data if data.needs_files else None)


def check_prepared(experiment: Experiment, data: DataSettings, folder: Path) -> None:
    """Check a data set that may have been prepared in `folder` against the experiment.

    Raises:
        UserError: the manifest is damaged, the images have another shape, or there are too few.
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
            f"{manifest}: expected images {expected}, as the section data says, found {shape}; "
            f"remove {folder} or choose another data.name"
        )
    if data == experiment.data and (problem := experiment.image_count_problem(train, heldout)):
        raise UserError(f"{manifest}: {train:,} images to train on, {heldout:,} held out: {problem}")


def _write(path: Path, seed: int, section: str, settings: Settings | None) -> None:
    """Write one settings file, unless `path` has the same content."""
    if settings is None:
        return
    try:
        if read_settings(path, type(settings)) == (seed, settings):
            return
    except UserError:
        pass  # absent, damaged, or of another version
    with writing(path) as stream:
        content = {"seed": seed, section: settings.model_dump()}
        stream.write(yaml.dump(content, Dumper=_Dumper, sort_keys=False).encode())


def read_settings(path: Path, model: type[S]) -> tuple[int, S]:
    """Seed and settings of a stage's settings file.

    Raises:
        UserError: the file is missing, damaged, or of another stage.
    """
    section = next(name for name, known in STAGES.items() if known is model)
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) != {"seed", section}:
        found = sorted(map(str, content)) if isinstance(content, dict) else content
        raise UserError(f"{path}: expected the keys 'seed' and {section!r}, found {found!r}")
    if type(seed := content["seed"]) is not int:
        raise UserError(f"{path}: seed: expected an integer, found {seed!r}")
    return seed, validate(model, content[section], f"{path}: {section}")
