"""A copy of everything that a command prints, in a file of its own."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vaebm.system.startup import summary


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
    """Within this context what goes to stdout and stderr goes to `path` as well.

    Of a command that succeeds the file's last line says how long it took.

    Of several processes (torchrun) the first begins the file and the others only add their errors to it: their stdout goes
    nowhere.
    """
    first = int(os.environ.get("WORLD_SIZE", 1)) == 1 or os.environ["RANK"] == "0"
    out, err = sys.stdout, sys.stderr
    with contextlib.ExitStack() as files:
        if not first:
            sys.stdout = files.enter_context(open(os.devnull, "w"))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if first:
                path.write_text("")
            file = files.enter_context(path.open("a"))
            sys.stderr = _Both(err, file)
            if first:
                sys.stdout = _Both(out, file)
        try:
            yield
        except SystemExit as ended:
            if not ended.code and path is not None and first and (took := summary()):
                file.write(f"{took}\n")
            raise
        finally:
            sys.stdout, sys.stderr = out, err


def asked_for(arguments: list[str]) -> Path | None:
    """The value of --log, read before anything else can fail."""
    for number, argument in enumerate(arguments):
        if argument == "--log" and number + 1 < len(arguments):
            return Path(arguments[number + 1])
        if argument.startswith("--log="):
            return Path(argument.removeprefix("--log="))
    return None
