"""Fast imports, and the time that a command takes.

Small stages mostly import: torch alone takes two seconds. Imports create a million permanent objects, which the garbage
collector would scan during imports, work and exit.
"""

import atexit
import contextlib
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

_loaded = time.monotonic()

_starting: float | None = None
"""Seconds spent on start-up and imports."""


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Within this context the garbage collector is off; objects created in it are never scanned."""
    global _starting
    if _starting is None:
        atexit.register(gc.freeze)  # no scan at exit either
    before = 0.0 if _starting is None else _starting - process_age()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
    _starting = process_age() + before


def process_age(process: int | None = None) -> float:
    """Seconds since the start of a process, by default this one; without /proc, since the import of this module."""
    try:
        ticks = float(
            Path(f"/proc/{process or os.getpid()}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
        )
        return float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.monotonic() - _loaded


def time_taken() -> str | None:
    """Time that this command took, in words; None before `imports`."""
    return None if _starting is None else f"took {process_age():.1f} s, of which {_starting:.1f} s to start"
