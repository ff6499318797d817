"""The error of a user's mistake, and short texts for errors."""

import contextlib
import math
import operator
import re
from collections.abc import Iterable, Iterator
from typing import Any

MOST = 1000
"""Characters of an error; the middle of a longer one is left out."""


PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "dvc_data": "dvc", "dvc_objects": "dvc", "crc32c": "tfrecord"}
"""Module → package that installs it, where their names differ."""


class UserError(ValueError):
    """Mistake of the user: one line with place, expected, found, and what to do."""

    def __init__(self, message: str):
        letters = [one if one.isprintable() else ascii(one)[1:-1] for one in shorten(message, MOST)]
        super().__init__(shorten("".join(letters), MOST))


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Prefix the message of a `UserError` with `where`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def shorten(text: str, most: int = 160) -> str:
    """`text`, without its middle if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: 2 * most // 3]} … {text[len(text) - most // 4 :]}"


def brief(found: object) -> str:
    """Short text of an error or a value of any kind, in one printable line."""
    text = f"{type(found).__name__}: {found}" if isinstance(found, KeyError) else str(found)
    line = next((line.strip() for line in text[: 2 * MOST].splitlines() if line.strip()), type(found).__name__)
    return shorten(line if line.isprintable() else ascii(line))


def listed(names: list[str], most: int = 3) -> str:
    """The first of some names, escaped where they are not printable or blank, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    first = [name if name.strip() and name.isprintable() else ascii(name) for name in names[:most]]
    return ", ".join(map(shorten, first)) + more


def check_number(name: str, found: Any, least: int, whole: bool = True) -> None:
    """Raise a `UserError` unless the argument `name` is a finite number from `least`, and an integer if `whole`."""
    try:
        fits = least <= (operator.index(found) if whole else found) < math.inf
    except (TypeError, ValueError, RuntimeError):  # no number, or an array of several
        fits = False
    if not fits:
        kind = "an integer" if whole else "a number"
        raise UserError(f"{name}: expected {kind} from {least}, found {brief(repr(found))}")


def check_choice(name: str, found: object, choices: Iterable[str]) -> None:
    """Raise a `UserError` unless the argument `name` is one of the choices."""
    if found not in (known := list(choices)):
        raise UserError(f"{name}: expected {' or '.join(known)}, found {brief(repr(found))}")


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """One line for a module of an extra that is not installed; None for any other module."""
    from importlib.metadata import PackageNotFoundError, requires

    module = str(error.name).partition(".")[0]
    package = PACKAGES.get(module, module).replace("_", "-")
    try:
        found = "\n".join(requires("vaebm") or ())
    except PackageNotFoundError:
        return None
    extra = re.search(rf"^{re.escape(package)}\b(?!-).*; extra == [\"'](.+)[\"']$", found, re.MULTILINE)
    return extra and f'{module}: expected the package {package}, found none; pip install "vaebm[{extra[1]}]"'
