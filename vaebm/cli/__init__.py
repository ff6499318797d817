"""The command line."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from vaebm.cli.commands import app
from vaebm.system.errors import UserError
from vaebm.system.log_file import log_argument, tee_output

__all__ = ["main"]


def _tell(reason: str) -> None:
    """Print why this command ends, once per training."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from vaebm.system.distributed import report_error_once

        if not report_error_once():
            return
    print(reason, file=sys.stderr)


def main() -> Any:
    """Run the command line. A failed command ends its log with its message; user errors have no traceback."""
    if "RANK" not in os.environ:  # torchrun sets both; a cluster's shell may set WORLD_SIZE alone
        os.environ.pop("WORLD_SIZE", None)
    with tee_output(log_argument(sys.argv[1:])):
        try:
            app()
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
