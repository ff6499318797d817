"""Copy of the output of a command in a log file."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vaebm.system.errors import UserError
from vaebm.system.startup import time_taken


class _Log:
    """The log file. If it cannot be written any more, for instance on a full disk, one line says so."""

    def __init__(self, path: Path, first: bool):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # unbuffered: nothing is left to write when it is closed; at the end of the file: other processes write too
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if first else 0)
            self._file: io.FileIO | None = io.FileIO(os.open(path, flags, 0o666), "ab")
            self._path = path
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: the log cannot be written: {getattr(error, 'strerror', None) or error}; "
                "--log names another place"
            ) from None

    def write(self, text: str) -> None:
        if self._file is not None:
            try:
                self._file.write(text.encode(errors="backslashreplace"))
            except OSError as error:
                self._file = None
                print(f"{self._path}: the log ends here: {error.strerror or error}", file=sys.__stderr__)


class _Tee:
    """Text stream that writes to the terminal and to a log: whole lines, without progress bars."""

    def __init__(self, terminal: TextIO, log: _Log):
        self._terminal, self.log, self._line = terminal, log, ""

    def write(self, text: str) -> int:
        if "\r" not in text:
            self._line += text
            if text.endswith("\n"):
                self.log.write(self._line)
                self._line = ""
        return self._terminal.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._terminal, name)


def replace_terminal(terminal: TextIO) -> None:
    """Write stderr to another terminal, and to the log as before."""
    sys.stderr = _Tee(terminal, sys.stderr.log) if isinstance(sys.stderr, _Tee) else terminal


@contextlib.contextmanager
def tee_output(path: Path | None) -> Iterator[None]:
    """Within this context, stdout and stderr are also written to `path`.

    After a success the last line of the file is the time taken. With several processes (torchrun) the first starts
    the file. The others append their errors, and their stdout is discarded.

    Raises:
        UserError: `path` cannot be written.
    """
    first = int(os.environ.get("WORLD_SIZE", 1)) == 1 or os.environ["RANK"] == "0"
    out, err = sys.stdout, sys.stderr
    with contextlib.ExitStack() as files:
        if not first:
            sys.stdout = files.enter_context(open(os.devnull, "w", encoding="utf-8"))
        if path is not None:
            log = _Log(path, first)
            sys.stderr = _Tee(err, log)
            if first:
                sys.stdout = _Tee(out, log)
        try:
            yield
        except SystemExit as ended:
            if not ended.code and path is not None and first and (took := time_taken()):
                log.write(f"{took}\n")
            raise
        finally:
            sys.stdout, sys.stderr = out, err
