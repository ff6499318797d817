"""What all settings share: the frozen base class, the kinds of numbers, fingerprints."""

from __future__ import annotations

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


def later(default: T) -> T:
    """Default of a setting that was added after the first results; a dump leaves the setting out while it has this value.

    Settings files, fingerprints and Snakemake's parameters stay as they were. Never change such a default: a file without the
    setting would mean something else.
    """
    return Field(default, exclude_if=lambda value: value == default)


class Settings(BaseModel):
    """A frozen group of settings; unknown keys and values of another type are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def fingerprint(value: Any) -> str:
    """SHA-256 of a plain value, by its canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
