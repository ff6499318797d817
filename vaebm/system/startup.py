"""How long a command takes to start, and how that is kept short.

Most of a small stage is its imports: torch alone takes two seconds. Loading modules makes a million objects that stay for good, and
Python's garbage collector walks over them again and again: while they load, during the work, and once more at the end.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

_loaded = time.monotonic()

_starting: float | None = None
"""Seconds of the life of this process until it had its modules, and of loading more later."""


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Within this context modules are loaded without the garbage collector, and what they made is left out of it afterwards."""
    global _starting
    if _starting is None:
        atexit.register(gc.freeze)  # what the work made is not walked over at the end either
    before = _starting if _starting is None else _starting - age()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
    _starting = age() + (before or 0.0)


def age(process: int | None = None) -> float:
    """Seconds since a process, or else this one, started; since this module was loaded where the system does not tell (/proc)."""
    try:
        started = float(
            Path(f"/proc/{process or os.getpid()}/stat").read_text().rsplit(")", 1)[1].split()[19]
        ) / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - started
    except OSError:
        return time.monotonic() - _loaded


def summary() -> str | None:
    """How long this command took; None before `imports`."""
    return None if _starting is None else f"took {age():.1f} s, of which {_starting:.1f} s to start"
