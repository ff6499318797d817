"""Experiment files and settings files: read, checked and written as YAML; every error is one line."""

import math
import re
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError

from vaebm.config import PRIOR, STAGES, DataSettings, Experiment, S, Settings
from vaebm.config.base import NAME, merge, nested
from vaebm.config.layers import COMMAND_LINE, SettingsLayer, check_key, group_of, source
from vaebm.system.errors import UserError, brief, listed, located
from vaebm.system.files import found_at, writing
from vaebm.system.plugins import load_plugins


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


class _SectionDumper(_Dumper):
    """Writes lists on one line."""


_SectionDumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True)
)


LARGEST = 1 << 18
"""Bytes of a YAML file, and values in it with its aliases expanded."""


def read_yaml(path: Path) -> Any:
    """Plain values of a YAML 1.2 file in UTF-8.

    Raises:
        UserError: the file does not exist, is not YAML, or is larger than `LARGEST`.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: expected a YAML file, found none") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected a YAML file in UTF-8, found something unreadable ({type(error).__name__})"
        ) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Any:
    """Plain values of YAML 1.2.

    Args:
        name: file or key, for errors.

    Raises:
        UserError: it is not YAML, or is larger than `LARGEST`.
    """
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _Constructor
    large = UserError(f"{name}: expected a YAML file of at most {LARGEST:,} characters and values, found more")
    if len(text) > LARGEST:
        raise large
    try:
        content = reader.load(text)
        values = _count(content, {})
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = str(getattr(error, "problem", None) or error).partition(" with value")[0]  # of a duplicate key
        raise UserError(f"{where}: not YAML: {brief(problem)}") from None
    except Exception as error:  # a value like !!int x, or lists in each other without end
        raise UserError(
            f"{name}: not YAML: a value that is not what its tag says ({type(error).__name__}: {brief(error)})"
        ) from None
    if values > LARGEST:
        raise large
    return content


def _count(value: Any, known: dict[int, int]) -> int:
    """Number of values in `value`, each alias counted as often as it occurs.

    Raises:
        RecursionError: a value contains itself.
    """
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    if id(value) not in known:
        known[id(value)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(value)]


def validate(model: type[S], value: Any, where: str | Callable[[str], str]) -> S:
    """`value` as `model`.

    Args:
        where: file, for errors, or a function that returns it for a key.

    Raises:
        UserError: unknown or missing keys, invalid values; one line on the first, with the keys of the others.
    """
    load_plugins()
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        keys = list(dict.fromkeys(".".join(_location(problem)) or "the whole" for problem in others))
        more = f"; also not right: {listed(keys)}" if keys else ""
        line = problem_line(model, first)
        file = where if isinstance(where, str) else where(line.partition(":")[0])
        raise UserError(f"{file}: {line}{more}") from None


def _location(problem: Any) -> list[str]:
    """Keys and positions down to the place of a validation error."""
    internal = ("function-", "(")  # parts that pydantic adds to the keys
    return [brief(part) for part in problem["loc"] if not str(part).startswith(internal)]


def problem_line(model: type[BaseModel], problem: Any) -> str:
    """One validation error as text: key, expected, found."""
    location = _location(problem)
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; keys that exist: {', '.join(_fields(model, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: expected a value, found none"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", found {brief(repr(problem['input']))}"
    return f"{key}: {message}{found}" if key else f"{message}{found}"


def _fields(model: type[BaseModel], location: list[Any]) -> list[str]:
    """Fields of the group of settings at `location`."""
    annotation: Any = model
    for part in location:
        several = get_origin(annotation) in (list, dict)
        annotation = get_args(annotation)[-1] if several else group_of(annotation).model_fields[part].annotation
    return list(group_of(annotation).model_fields)


def check_name(name: str, where: str, advice: str = "rename the file") -> None:
    """Check the name of an experiment.

    Raises:
        UserError: it cannot be a part of paths, shell lines and MLflow's names, or belongs to something else.
    """
    if not re.fullmatch(NAME, name):
        expected = "a name of letters from a to z, digits, _ and -, which does not begin with -"
        raise UserError(f"{where}: expected {expected}, found {brief(repr(name))}; {advice}")
    if name.lower() == "data":
        raise UserError(
            f"{where}: an experiment cannot be called {name!r}: results/{name}/ holds something else; {advice}"
        )


def _read_file(path: Path) -> Any:
    """Content of an experiment file, which has to exist."""
    check_name(path.stem, str(path))
    if found_at(path) == "none":
        known = sorted(file.stem for file in path.parent.glob("*.yaml") if re.fullmatch(NAME, file.stem))
        exist = listed(known, 20) or "none"
        raise UserError(f"{path}: there is no experiment {path.stem!r}; experiments that exist: {exist}")
    return read_yaml(path)


def read_layers(path: Path, changes: Sequence[str] = ()) -> list[SettingsLayer]:
    """Values of an experiment: of the files that it starts from (`base`), its own, and `changes` like samples.count=10.

    Raises:
        UserError: a file does not exist or is not YAML, files start from each other, or a change has an unknown key.
    """
    layers: list[SettingsLayer] = []
    names, file, content = [path.stem], path, _read_file(path)
    while isinstance(content, dict) and "base" in content:
        base = content.pop("base")
        layers.insert(0, (str(file), content))
        if not isinstance(base, str):
            raise UserError(f"{file}: base: expected the name of an experiment, found {brief(repr(base))}")
        names.append(base)
        if base in names[:-1]:
            expected = "expected a file that does not start from this one"
            raise UserError(f"{file}: base: {expected}, found {' → '.join(names)}")
        with located(f"{file}: base"):
            check_name(base, "name", "choose another")
            content = _read_file(path.with_name(f"{base}.yaml"))
        file = path.with_name(f"{base}.yaml")
    if not isinstance(content, dict):
        validate(Experiment, content, str(file))
    layers.insert(0, (str(file), content))
    with_variants = [name for name, values in layers if "variants" in values]
    for name, values in layers:
        if name in with_variants[:-1]:
            del values["variants"]  # a file that has variants has all of them
    if changes:
        if not with_variants:
            layers[0][1]["variants"] = {"vaebm": {}}
        layers.append((COMMAND_LINE, _changed(changes)))
    return layers


def _changed(changes: Sequence[str]) -> dict[str, Any]:
    """Values in texts like samples.chain.steps=40."""
    content: dict[str, Any] = {}
    for change in changes:
        key, equals, text = (part.strip() for part in change.partition("="))
        if not equals:
            raise UserError(f"{COMMAND_LINE}: expected settings as samples.chain.steps=40, found {brief(repr(change))}")
        check_key(key)
        content = merge(content, nested(key, parse_yaml(text, f"{COMMAND_LINE}: {key}")))
    return content


def read_experiment(path: Path, changes: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, with `changes` as in `read_layers`.

    Raises:
        UserError: as for `read_layers`; or the values are not an experiment.
    """
    layers = read_layers(path, changes)
    values: dict[str, Any] = reduce(merge, (content for _, content in layers), {})
    return validate(Experiment, values, lambda key: source(layers, key, str(path)))


def write_settings(experiment: Experiment, folder: Path, seeds: list[int], instead: Path = Path()) -> dict[str, str]:
    """Write one settings file per stage and seed under `folder` (results/<experiment>), without defaults of `later`.

    A file with equal content, in any text, is not touched, so that nothing reruns.

    Args:
        instead: another folder for the files to write, under the same paths.

    Returns:
        Path → where the file was written, for the files with other content.
    """
    files: list[tuple[Path, int, str, Settings | None]] = []
    if (evaluation := experiment.evaluation) is not None:
        files.append((folder / "classifier" / "classifier.yaml", 0, "classifier", evaluation.classifier))
        for name, extraction in evaluation.extractions.items():
            files.append((folder / "reference" / f"{name}.yaml", 0, "extractor", extraction))
    for model in experiment.models:
        for seed in experiment.seeds_of(model, seeds):
            run, stage = folder / model / f"seed{seed}", experiment.stage_of(model)
            files.append((run / f"{stage.name}.yaml", seed, stage.name, stage.settings))
            prior = experiment.prior if stage.prior else None
            files.append((folder / PRIOR / f"seed{seed}" / "prior.yaml", seed, "prior", prior))
            files.append((run / "samples" / "samples.yaml", seed, "samples", experiment.samples_of(model)))
            without_paths = evaluation and evaluation.without_paths
            files.append((run / "evaluation" / "evaluation.yaml", seed, "evaluation", without_paths))
    return {str(file[0]): written for file in files if (written := _write(*file, instead))}


def write_data_settings(data: DataSettings, folder: Path, instead: Path = Path()) -> dict[str, str]:
    """`write_settings` of a data set under `folder` (results/data), unless it needs no files."""
    path = folder / f"{data.prepared}.yaml"
    written = _write(path, 0, "data", data if data.needs_files else None, instead)
    return {str(path): written} if written else {}


def checkpoint_section(stage: str, network: Settings, source: Path, **others: str) -> str:
    """Section of an experiment file that takes the model of `stage` from `source`, with all settings of the network."""
    content = {"network": network.model_dump(), **others, "checkpoint": str(source)}
    text = yaml.dump({stage: content}, Dumper=_SectionDumper, sort_keys=False, allow_unicode=True, width=math.inf)
    chain = ", with the chain of its training" if stage == "ebm" else ""
    return f"# For an experiment file{chain}:\n{text.rstrip()}"


def holds(path: Path, seed: int, settings: Settings) -> bool:
    """Whether a settings file has this content, in any text; false if it is absent, damaged or of another version."""
    try:
        return read_settings(path, type(settings)) == (seed, settings)
    except UserError:
        return False


def _write(path: Path, seed: int, section: str, settings: Settings | None, instead: Path) -> str | None:
    """Write one settings file, unless `path` has the same content; returns its place under `instead`."""
    if settings is None or holds(path, seed, settings):
        return None
    with writing(instead / path) as stream:
        content = {"seed": seed, section: settings.model_dump()}
        stream.write(yaml.dump(content, Dumper=_Dumper, sort_keys=False).encode())
    return str(instead / path)


def read_settings(path: Path, model: type[S]) -> tuple[int, S]:
    """Seed and settings of a stage's settings file.

    Raises:
        UserError: the file is missing, damaged, or of another stage.
    """
    section = next(name for name, known in STAGES.items() if issubclass(model, known))
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) != {"seed", section}:
        found = sorted(map(str, content)) if isinstance(content, dict) else content
        raise UserError(f"{path}: expected the keys 'seed' and {section!r}, found {brief(repr(found))}")
    if type(seed := content["seed"]) is not int:
        raise UserError(f"{path}: seed: expected an integer, found {brief(repr(seed))}")
    return seed, validate(model, content[section], f"{path}: {section}")
