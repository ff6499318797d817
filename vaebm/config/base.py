"""Base classes of all settings, types of numbers and names, fingerprints."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from vaebm.system.errors import brief
from vaebm.system.plugins import NAME as NAME
from vaebm.system.plugins import Registry

S = TypeVar("S", bound="Settings")
T = TypeVar("T")

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Several = Annotated[int, Field(ge=2)]

OF_TRAINING = {"training", "encoded", "guard", "negatives", "quantize_positives", "replay", "selection"}
"""Settings of a section that a model from a checkpoint has no use for."""

MOST_CHANNELS = 1 << 16
"""Most channels of a layer, beyond which no network can be built."""

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


@dataclass(frozen=True, eq=False)
class Registered:
    """Annotation of a name in a registry; dumps add the version of its plug-in."""

    registry: Registry[Any]
    before: Iterable[str] = ()
    after: Iterable[str] = ()
    """Further names."""
    what: str = ""
    """Description of them all, for errors; default: the registry's."""
    advice: str = ""

    @property
    def names(self) -> list[str]:
        """All names."""
        return [*self.before, *self.registry, *self.after]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the name, without the version."""
        return core_schema.no_info_after_validator_function(
            self._check,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(self.registry.stamped),
        )

    def _check(self, text: str) -> str:
        if text in {*self.before, *self.after}:
            return text
        return self.registry.check(text, self.what, self.names, self.advice)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """All names."""
        return {**handler(schema), "enum": self.names}


class Choice(Settings):
    """Settings of an entry of a registry, which one field names; a plug-in's are a subclass with more fields."""

    registry: ClassVar[Registry[Any]]
    """Its entries have `settings`, the class of theirs."""
    tag: ClassVar[str]
    """Field with the name; a name alone is the settings without other values."""

    @model_validator(mode="wrap")
    @classmethod
    def _as_entry(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, Choice) and value.registry is cls.registry:
            model = cls.model_of({cls.tag: getattr(value, cls.tag)})  # perhaps a plug-in's
            return value if isinstance(value, model) else model.model_validate(dict(value))
        value = {cls.tag: value} if isinstance(value, str) else value
        model = cls.model_of(value)
        if model is cls:
            return handler(value)
        if unknown := [brief(name) for name in value if name not in model.model_fields]:
            raise ValueError(f"{unknown[0]}: unknown key; keys that exist: {', '.join(model.model_fields)}")
        return model.model_validate(value)

    @classmethod
    def model_of(cls, value: Any) -> type[Self]:
        """Class of the settings that `value` contains."""
        name = value.get(cls.tag) if isinstance(value, dict) else None
        entry = cls.registry.get(name.partition("==")[0]) if isinstance(name, str) else None
        return (entry and entry.settings) or cls

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Schema of these settings, or of a plug-in's."""
        own = handler(schema)
        models = dict.fromkeys(entry.settings for entry in cls.registry.values())
        others = [handler(model.__pydantic_core_schema__) for model in models if model not in (None, cls)]
        return {"anyOf": [own, *others]} if others else own


@dataclass(frozen=True, eq=False)
class ByName:
    """Annotation of a choice that its name can replace; dumps have the name where nothing else is set."""

    model: type[Choice]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Dump the name."""

        def dump(value: Choice) -> Any:
            content = value.model_dump()
            named = all(found is None for key, found in content.items() if key != value.tag)
            return content[value.tag] if named else content

        return {**handler(source), "serialization": core_schema.plain_serializer_function_ser_schema(dump)}

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A name or a section."""
        return {"anyOf": [{"type": "string", "enum": [*self.model.registry]}, handler(schema)]}


def plugins_in(value: Any) -> set[str]:
    """Name, version and hash of the source of each plug-in that settings use."""
    parts = dict(value).values() if isinstance(value, Settings | dict) else value if isinstance(value, list) else ()
    name = getattr(value, value.tag) if isinstance(value, Choice) else ""
    own = {value.registry.origin(name)} if name and name in value.registry.plugins else set[str]()
    return own.union(*map(plugins_in, parts))


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Plain `values` with `changes`, group by group; lists, and groups of another `kind` or `dataset`, are replaced.

    A checkpoint replaces the settings of a training.
    """
    values = without_training(values, changes)
    groups = {
        key: merge(group, value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(group := values.get(key), dict) and not _is_another(group, value)
    }
    return {**values, **changes, **groups}


def without_training(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values`, without those of a training if the `changes` name a checkpoint."""
    return {key: one for key, one in values.items() if not (changes.get("checkpoint") and key in OF_TRAINING)}


def _is_another(group: dict[str, Any], changes: dict[str, Any]) -> bool:
    """Whether `changes` name another energy network, or another data set, whose settings are others."""
    given = {"kind": "residual", "dataset": None} | group
    return any(changes.get(tag, given[tag]) != given[tag] for tag in ("kind", "dataset"))


def nested(key: str, value: Any) -> dict[str, Any]:
    """The value of one setting, for example {"samples": {"count": 10}} for samples.count."""
    return reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), value)
