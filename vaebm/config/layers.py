"""Experiments as layers of plain values: the files that one starts from, the file itself, changes by a command line."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from vaebm.config.experiment import CHANGED_BY_VARIANTS, Experiment, Variant
from vaebm.system.errors import UserError, brief

SettingsLayer = tuple[str, dict[str, Any]]
"""File, or `COMMAND_LINE`, and the values that it gives."""

COMMAND_LINE = "set"
DEFAULTS = "config/defaults.yaml"


def group_of(annotation: Any) -> Any:
    """Group of settings in an annotation, for example in a union; None: there is none, or it is in a list."""
    if hasattr(annotation, "model_fields"):
        return annotation
    if get_origin(annotation) in (list, dict):
        return None
    return next(filter(None, map(group_of, get_args(annotation))), None)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting and every group of settings, as nvae.network.latents."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if group := group_of(field.annotation):
            yield from keys(group, f"{prefix}{name}.")


def values(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its value, also those that dumps omit."""
    for name, value in settings:
        if isinstance(value, BaseModel):
            yield from values(value, f"{prefix}{name}.")
        elif isinstance(value, dict) and any(isinstance(part, BaseModel) for part in value.values()):
            for key, part in value.items():
                yield from values(part, f"{prefix}{name}.{key}.")
        else:
            yield prefix + name, value


def check_key(key: str) -> None:
    """Raise `UserError` with the nearest keys if there is no such setting."""
    known = [*keys(Experiment)]
    if variant := re.match(r"variants\.[^.]+(\.|$)", key):
        sections = {f"{section}.": model for section, model in CHANGED_BY_VARIANTS.items()}
        inside = [*keys(Variant), *(one for prefix, model in sections.items() for one in keys(model, prefix))]
        known += [variant[0].removesuffix("."), *(variant[0] + one for one in inside)]
    if key not in known:
        nearest = ", ".join(difflib.get_close_matches(key, known, cutoff=0))
        raise UserError(f"{COMMAND_LINE}: {brief(key)}: unknown key; nearest keys: {nearest}")


def split_changes(value: Any) -> list[str]:
    """Changes in a value of `snakemake --config`, which is a list, or text where a change's value is a list."""
    if isinstance(value, str):
        inner = value.strip().removeprefix("[").removesuffix("]") if value.strip().startswith("[") else value
        depth, parts = 0, [""]
        for character in inner:
            depth += (character in "[{") - (character in "]}")
            parts = [*parts, ""] if character == "," and not depth else [*parts[:-1], parts[-1] + character]
        value = [part.strip() for part in parts]
    if not (isinstance(value, list) and value and all(isinstance(one, str) and one for one in value)):
        raise UserError(f"{COMMAND_LINE}: expected a list as [samples.chain.steps=40], found {brief(repr(value))}")
    return value


def source(layers: Sequence[SettingsLayer], key: str, otherwise: str) -> str:
    """The last layer that gives `key`."""

    def gives(content: Any) -> bool:
        for part in key.split("."):
            if not isinstance(content, dict) or part not in content:
                return False
            content = content[part]
        return True

    return next((name for name, content in reversed(layers) if gives(content)), otherwise)
