"""Settings of an experiment with the changes of a variant."""

from typing import Any

from pydantic import ValidationError

from vaebm.config.base import Choice, S, Settings, without_training
from vaebm.config.checkpoint import ModelSettings
from vaebm.system.errors import brief


def with_changes(settings: S, changes: dict[str, Any], where: str) -> S:
    """`settings` with the values in `changes`.

    Args:
        changes: new values by name, nested for groups of settings; lists are replaced.
        where: key of `changes` in the file, for errors.

    Raises:
        ValueError: unknown setting or invalid value.
    """
    try:
        return type(settings).model_validate(_merged(settings, changes))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join([where, *(str(part) for part in problem["loc"])])
        raise ValueError(
            f"{key}: {problem['msg'].removeprefix('Value error, ')}, found {brief(repr(problem['input']))}"
        ) from None


def _merged(settings: Settings, changes: dict[str, Any]) -> dict[str, Any]:
    """Values of `settings` with `changes`, group by group; not from dumps, which omit defaults of `later`."""
    values = dict(settings)
    if isinstance(settings, Choice):  # of another kind: what both have
        values = {key: value for key, value in values.items() if key in settings.model_of(changes).model_fields}
    groups = {
        key: _merged(group, value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(group := values.get(key), Settings)
    }
    if isinstance(settings, ModelSettings) and settings.checkpoint is not None and "checkpoint" not in changes:
        changes = {"checkpoint": settings.checkpoint, **changes}
    return {**without_training(values, changes), **changes, **groups}
