"""The command line."""

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from vaebm.cli.commands import app
from vaebm.system.errors import UserError
from vaebm.system.log_file import tee_output

__all__ = ["main"]


def _tell(reason: str) -> None:
    """Print why this command ends, once per training."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from vaebm.system.distributed import report_error_once

        if not report_error_once():
            return
    print(reason, file=sys.stderr)


def main() -> Any:
    """Run the command line: `--log FILE`, which every command has, then the command.

    A failed command ends its log with its message; user errors have no traceback.
    """
    if "RANK" not in os.environ:  # torchrun sets both; a cluster's shell may set WORLD_SIZE alone
        os.environ.pop("WORLD_SIZE", None)
    before = argparse.ArgumentParser("vaebm", add_help=False, allow_abbrev=False)
    before.add_argument("--log", type=Path)
    options, arguments = before.parse_known_args()
    with tee_output(options.log):
        try:
            app(arguments)
        except UserError as error:
            _tell(str(error))
            sys.exit(1)
        except Exception as error:
            from vaebm.system.device import Interrupted

            if isinstance(error, Interrupted):
                _tell(str(error))
                sys.exit(error.status)
            _tell(traceback.format_exc().rstrip())
            sys.exit(1)
