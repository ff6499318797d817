"""What one run of the pipeline works on: the chosen experiments and seeds, checked, with their settings files written.

The Snakefile calls `resolve` in every job. Paths are relative to the project.
"""

import json
import shlex
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from vaebm.config import BASELINE, PRIOR, DataSettings, Experiment
from vaebm.config.checkpoint import ModelSettings
from vaebm.config.datasets import missing_files
from vaebm.config.foreign import foreign_files
from vaebm.config.layers import split_changes
from vaebm.config.weights import weights_hash
from vaebm.config.yaml_files import check_name, holds, read_experiment, read_yaml, write_data_settings, write_settings
from vaebm.system.errors import UserError, brief, listed, located
from vaebm.system.files import EARLIER_MODEL, MODEL, found_at, model_of, snakemake_record

CONFIG = Path("config/config.yaml")


class Pipeline(NamedTuple):
    """A checked configuration."""

    experiments: dict[str, Experiment]
    seeds: list[int]
    datasets: dict[str, DataSettings]
    """Name under data/ → settings, for all data sets of all experiments."""
    written: dict[str, str]
    """Settings file that is missing or has other content → where it was written."""
    changes: str
    """Options of `vaebm benchmarks` that say what the command line changed, after a space, with braces doubled."""


def resolve(overrides: Mapping[str, Any], write: bool, instead: Path = Path(), storage: bool = False) -> Pipeline:
    """Read config/config.yaml and its experiments, check that Snakemake can run them, and write the settings files.

    Args:
        overrides: values of `snakemake --config`. `set` changes settings of the experiments as if their files said so;
            `name` keeps the results of a single experiment apart.
        write: whether to write settings files and check local files; false in jobs, which must not change either.
        instead: folder of the settings files to write, if those under results/ must not change.
        storage: whether models are in a storage; those under results/ are then copies, which no job replaces.

    Raises:
        UserError: a mistake in one of the files; absent raw files or weights; prepared data that does not fit.
    """
    try:
        return _resolve(overrides, write, instead, storage)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read or written: {error.strerror or error}") from None


def _resolve(overrides: Mapping[str, Any], write: bool, instead: Path, storage: bool) -> Pipeline:
    """`resolve`, in which files and folders may be unreadable."""
    names, seeds = choose(read_yaml(CONFIG), {key: overrides[key] for key in overrides if key not in ("set", "name")})
    changes = split_changes(overrides["set"]) if "set" in overrides else []
    files = {name: _path(name) for name in names}
    if "name" in overrides:
        files = {_own_name(overrides["name"], names): _path(names[0])}
    experiments = {name: read_experiment(path, changes) for name, path in files.items()}
    if write and not storage:
        check_models(experiments)
    written: dict[str, str] = {}
    for name, experiment in experiments.items() if write else ():
        check_checkpoints(experiment, seeds, str(files[name]))
        if not storage:
            check_by_hand(experiment, Path("results", name), seeds)
        written |= write_settings(experiment, Path("results", name), seeds, instead)
    check_complete(experiments, files)  # after writing: an incomplete experiment's stages run by hand with these files
    for name, experiment in experiments.items() if write else ():
        for extraction in experiment.evaluation.extractions.values() if experiment.evaluation else ():
            if extraction.weights:
                with located(f"{files[name]}: evaluation"):
                    weights_hash(extraction.name, extraction.weights, extraction.sha256)
        for variant, one in experiment.variants.items():
            if one.images is not None:
                with located(f"{files[name]}: variants.{variant}.images"):
                    foreign_files(Path(one.images))
    options = [*(("--set", change) for change in changes), *([("--base", names[0])] if "name" in overrides else [])]
    said = "".join(f" {option} {shlex.quote(value)}" for option, value in options)
    said = said.replace("{", "{{").replace("}", "}}")
    datasets = collect_datasets(experiments, files, write)
    for data in datasets.values() if write else ():
        written |= write_data_settings(data, Path("results/data"), instead)
    return Pipeline(experiments, seeds, datasets, written, said)


def _own_name(name: Any, names: list[str]) -> str:
    """The checked `name` of the command line for the results of the experiment in `names`."""
    if not isinstance(name, str):
        raise UserError(f"name: expected a name with a letter, as digits_40, found {brief(repr(name))}")
    check_name(name, "name", "choose another")
    if len(names) != 1:
        raise UserError(f"name: expected a single experiment, as 'experiments=[digits]', found {listed(names)}")
    if _path(name).exists():
        raise UserError(f"name: {name} is the experiment of {_path(name)}; choose another")
    return name


def choose(content: Any, overrides: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Experiment names and seeds in the content of config/config.yaml and the command line's `overrides`, checked."""
    if not isinstance(content, dict):
        raise UserError(f"{CONFIG}: expected the keys experiments and seeds, found {brief(repr(content))}")
    config = {**content, **overrides}
    if unknown := sorted(map(str, set(config) - {"experiments", "seeds"})):
        exist = "experiments, seeds; on the command line also set, name"
        raise UserError(f"{CONFIG}: {listed(unknown)}: unknown key; keys that exist: {exist}")
    names: Any = config.get("experiments")
    seeds: Any = config.get("seeds")
    if isinstance(overrides.get("seeds"), list):  # on the command line Snakemake reads the numbers in a list as text
        seeds = [int(seed) if isinstance(seed, str) and seed.isdecimal() else seed for seed in overrides["seeds"]]
    if not (_distinct(names) and all(isinstance(name, str) for name in names)):
        raise UserError(
            f"{CONFIG}: experiments: expected a list of different names, as [digits], found {brief(repr(names))}"
        )
    for name in names:
        check_name(name, f"{CONFIG}: experiments")
    if not (_distinct(seeds) and all(type(seed) is int and seed >= 0 for seed in seeds)):
        form = "a list of different integers from 0, as [0, 1, 2]"
        raise UserError(f"{CONFIG}: seeds: expected {form}, found {brief(repr(seeds))}")
    return names, seeds


def check_complete(experiments: Mapping[str, Experiment], files: Mapping[str, Path]) -> None:
    """Raise `UserError` where sections are missing that the pipeline requires."""
    if lacking := [name for name, experiment in experiments.items() if experiment.missing]:
        name, *others = lacking
        more = f"; so are {listed(others)}" if others else ""
        raise UserError(
            f"{files[name]}: expected an experiment that Snakemake can run, found one without "
            f"{' and without '.join(experiments[name].missing)}{more}; `vaebm describe {name}` says what it takes, and "
            f"its stages run by hand with the settings files under results/{name}/ (`vaebm nvae --help`)"
        )


def check_models(experiments: Mapping[str, Experiment]) -> None:
    """Raise `UserError`, one line per experiment, where a model has the name of an earlier version."""
    lines = []
    for name in experiments:
        folders = [Path("results", name, "classifier"), *Path("results", name).glob("*/seed*")]
        if earlier := [path for path in map(model_of, folders) if path.name == EARLIER_MODEL]:
            lines.append(
                f"{earlier[0]}: expected {MODEL}, found the model of an earlier version; `vaebm convert results` "
                "writes it from this one, without training"
            )
    if lines:
        raise UserError("\n".join(lines))


def check_checkpoints(experiment: Experiment, seeds: list[int], file: str) -> None:
    """Raise `UserError` where a model is to be taken from a file or folder that does not exist."""
    for model, seed in product(experiment.models, seeds):
        checkpoint = experiment.checkpoint_of(model)
        if checkpoint is None or checkpoint.is_hub or (found := found_at(checkpoint.file(seed))) == "a file":
            continue
        where = checkpoint.file(seed) if checkpoint.path(seed).is_dir() else checkpoint.path(seed)
        raise UserError(
            f"{file}: {experiment.stage_of(model).name}.checkpoint: expected a file, a folder with a model or the id "
            f"OWNER/NAME of a repository, found {found} at {where}; docs/how-to/checkpoints.md names published files"
        )


def check_by_hand(experiment: Experiment, results: Path, seeds: list[int]) -> None:
    """Raise `UserError` where a job would replace a model that no job wrote; before settings files are written."""
    for model, seed in product(experiment.models, seeds):
        folder, stage = results / model / f"seed{seed}", experiment.stage_of(model)
        written, own = folder / MODEL, folder / f"{stage.name}.yaml"
        records = [snakemake_record(kind, written) for kind in ("metadata", "incomplete")]
        if not written.is_file() or stage.settings is None or any(record.exists() for record in records):
            continue
        inputs = [own, Path("data", experiment.data.prepared, "manifest.json")]
        below = [] if model == BASELINE else [BASELINE, PRIOR][: 1 + stage.prior]
        inputs += [results / name / f"seed{seed}" / MODEL for name in below]
        older = [path for path in inputs if path.is_file() and path.stat().st_mtime <= written.stat().st_mtime]
        if older != inputs or not holds(own, seed, stage.settings) or not (folder / "training.json").is_file():
            use = f", and name it as {stage.name}.checkpoint to use it" * isinstance(stage.settings, ModelSettings)
            raise UserError(
                f"{written}: expected no file or a model that this pipeline made with these settings, found "
                f"another, which would be lost; move it elsewhere{use}"
            )


def collect_datasets(
    experiments: Mapping[str, Experiment], files: Mapping[str, Path], write: bool
) -> dict[str, DataSettings]:
    """Name under data/ → settings of every data set; checks local files if `write`."""
    datasets: dict[str, DataSettings] = {}
    for name, experiment in experiments.items():
        for data in experiment.datasets:
            section, prefix = ("evaluation.ood", "") if data in experiment.ood_data else ("data", "data.")
            where, folder = f"{files[name]}: {section}", Path("data", data.prepared)
            if datasets.setdefault(data.prepared, data) != data:
                own_name = f"give one of them a {prefix}name of its own"
                advice = f"give both the same {prefix}path" if data.facts.train else own_name
                raise UserError(f"{where}: another experiment has other settings for {folder}; {advice}")
            if not write:
                continue
            problem = missing_files(data.dataset, data.path, f"{prefix}path")
            if problem and found_at(folder / "manifest.json") != "a file":
                raise UserError(f"{where}: {problem}")
            with located(where):
                check_prepared(experiment, data, folder)
    return datasets


def check_prepared(experiment: Experiment, data: DataSettings, folder: Path) -> None:
    """Check a data set that may have been prepared in `folder` against the experiment.

    Raises:
        UserError: the manifest is damaged, the images have another shape, or there are too few.
    """
    manifest = folder / "manifest.json"
    if found_at(manifest) == "none":
        return
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        shape, splits = content["shape"], {split: last - first for split, (first, last) in content["splits"].items()}
        train, heldout = splits["train"], splits["heldout"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{manifest}: expected the manifest of a prepared data set, found something else; remove {folder}"
        ) from None
    facts = data.facts
    expected = [facts.side, facts.side, facts.channels]
    if shape != expected:
        raise UserError(
            f"{manifest}: expected images {expected}, as the section data says, found {brief(shape)}; "
            f"remove {folder} or choose another data.name"
        )
    if data == experiment.data and (problem := experiment.image_count_problem(train, heldout)):
        raise UserError(f"{manifest}: {train:,} images to train on, {heldout:,} held out: {problem}")


def pinned_sets(pins: Path) -> dict[str, str]:
    """Path of every set pinned in a file of DVC → its hash.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = {out["path"]: out["md5"] for out in read_yaml(pins)["outs"]}
    except (KeyError, TypeError):
        found = {"": None}
    if not all(isinstance(part, str) and part for item in found.items() for part in item):
        raise UserError(
            f"{pins}: expected a file of DVC with outs, each with a path and an md5, found something else; "
            f"`git checkout {pins}` restores it"
        )
    return found


def _path(name: str) -> Path:
    return Path("config", "experiments", f"{name}.yaml")


def _distinct(values: Any) -> bool:
    """Whether `values` is a list with at least one value and none twice."""
    return isinstance(values, list) and bool(values) and all(values.count(value) == 1 for value in values)
