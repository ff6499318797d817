"""Copy of the output of a command in a log file."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vaebm.system.startup import time_taken


class _Tee:
    """Text stream that writes to the terminal and to a file, without progress bars in the file."""

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
def tee_output(path: Path | None) -> Iterator[None]:
    """Within this context, stdout and stderr are also written to `path`.

    After a success the last line of the file is the time taken. Of several processes (torchrun) the first starts the
    file; the others append their errors, and their stdout is discarded.
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
            sys.stderr = _Tee(err, file)
            if first:
                sys.stdout = _Tee(out, file)
        try:
            yield
        except SystemExit as ended:
            if not ended.code and path is not None and first and (took := time_taken()):
                file.write(f"{took}\n")
            raise
        finally:
            sys.stdout, sys.stderr = out, err
