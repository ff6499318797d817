"""Base class of all settings, types of numbers, fingerprints."""

import hashlib
import json
from functools import reduce
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

S = TypeVar("S", bound="Settings")
T = TypeVar("T")

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Several = Annotated[int, Field(ge=2)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]

NAME = r"[A-Za-z0-9_][A-Za-z0-9_-]*"
"""Names of experiments, variants and data sets: they become parts of paths, shell lines and MLflow's names."""

Name = Annotated[str, Field(pattern=f"^{NAME}$")]


def later(default: T) -> T:
    """Default of a setting added after the first results; dumps omit the setting while it has this value.

    So settings files, fingerprints and Snakemake's parameters do not change. Never change such a default: files without
    the setting would change their meaning.
    """
    return Field(default, exclude_if=lambda value: value == default)


class Settings(BaseModel):
    """Frozen group of settings; unknown keys and values of another type are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Plain `values` with `changes`, group by group; lists are replaced."""
    groups = {
        key: merge(values[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(values.get(key), dict)
    }
    return {**values, **changes, **groups}


def nested(key: str, value: Any) -> dict[str, Any]:
    """The value of one setting, for example {"samples": {"count": 10}} for samples.count."""
    return reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), value)
