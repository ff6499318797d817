"""The command `vaebm`, also as `python -m vaebm`."""

import os
import signal
import sys
from types import FrameType


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped before the command began\n")
    os._exit(128 + number)


def start() -> None:
    """Run the command line; Ctrl-C while it is loaded is one line."""
    if loading := signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, _stop)
    try:
        from vaebm.cli import main
    except ModuleNotFoundError as error:
        from vaebm.system.errors import missing_extra

        if reason := missing_extra(error):
            sys.exit(reason)
        raise

    if loading:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


if __name__ == "__main__":
    start()
