"""The command line."""

import argparse
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from vaebm.cli import job_commands as job_commands  # registers its commands
from vaebm.cli.commands import app
from vaebm.system.errors import UserError, missing_extra
from vaebm.system.log_file import tee_output

__all__ = ["main"]


def _tell(reason: str) -> None:
    """Print why this command ends, once per training."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from vaebm.system.distributed import report_error_once

        if not report_error_once():
            return
    print(reason, file=sys.stderr)


def _clean_environment() -> None:
    """Ignore what shells, notebooks and other programs leave in the environment and what ends commands here."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's is absent outside it
    given = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK")]
    whole = all(number.isdecimal() for number in given) and int(given[0]) < int(given[1])
    if not (whole and os.environ.get("MASTER_ADDR")):  # torchrun sets all of them; a cluster's shell may set some
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            os.environ.pop(name, None)
    for stream in (sys.stdout, sys.stderr):  # names of files may have letters that the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            # whole lines: stderr writes a line and its end apart, and lines of two processes would mix
            stream.reconfigure(errors="backslashreplace", line_buffering=True, write_through=False)


def main() -> Any:
    """Run the command line: `--log FILE`, which every command has, then the command.

    A failed command ends its log with its message; user errors have no traceback.
    """
    _clean_environment()
    before = argparse.ArgumentParser("vaebm", add_help=False, allow_abbrev=False)
    before.add_argument("--log", type=Path)
    options, arguments = before.parse_known_args()
    try:
        with tee_output(options.log):
            _run(arguments)
    except UserError as error:  # of the log
        _tell(str(error))
        sys.exit(1)


def _run(arguments: list[str]) -> None:
    """Run a command, and end with its status."""
    try:
        app(arguments)
    except UserError as error:
        _tell(str(error))
    except Exception as error:
        from vaebm.system.device import Interrupted

        if isinstance(error, Interrupted):
            _tell(str(error))
            sys.exit(error.status)
        if isinstance(error, OSError) and error.filename is not None:  # of the user's files and disks
            _tell(f"{error.filename}: cannot be read or written: {error.strerror}")
        elif isinstance(error, ModuleNotFoundError) and (reason := missing_extra(error)):
            _tell(reason)
        else:
            _tell(traceback.format_exc().rstrip())
    sys.exit(1)
