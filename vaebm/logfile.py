"""A copy of everything that a command prints, in a file of its own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


class _Both:
    """A text stream that writes to the terminal and to a file; progress bars stay out of the file."""

    def __init__(self, terminal: TextIO, file: TextIO):
        self._terminal, self._file = terminal, file

    def write(self, text: str) -> int:
        if "\r" not in text:
            self._file.write(text)
            self._file.flush()
        return self._terminal.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._terminal, name)


@contextlib.contextmanager
def mirrored(path: Path | None) -> Iterator[None]:
    """Within this context what goes to stdout and stderr goes to `path` as well."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    out, err = sys.stdout, sys.stderr
    with path.open("w") as file:
        sys.stdout, sys.stderr = _Both(out, file), _Both(err, file)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err
