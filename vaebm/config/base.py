"""Base class of all settings, types of numbers, fingerprints."""

import hashlib
import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

S = TypeVar("S", bound="Settings")
T = TypeVar("T")

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Several = Annotated[int, Field(ge=2)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]

MOST_CHANNELS = 1 << 16
"""Most channels of a layer, beyond which no network can be built."""

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
