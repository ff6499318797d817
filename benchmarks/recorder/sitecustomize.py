"""Records begin, import time and end of a Python process; `orchestration.py` puts this folder on PYTHONPATH.

Python imports a module of this name in every process before anything else. A wrapper of `__import__` measures
imports, so the measured programs need no change.
"""

from __future__ import annotations

import atexit
import builtins
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_clock, _import, _pid = time.monotonic, builtins.__import__, os.getpid()
_main, _depth, _seconds = threading.main_thread(), 0, 0.0


def _timed(name: str, *arguments: Any, **more: Any) -> Any:
    """`__import__` that times outermost imports of the main thread; concurrent imports are one wait."""
    global _depth, _seconds
    if threading.current_thread() is not _main:
        return _import(name, *arguments, **more)
    began, _depth = _clock(), _depth + 1
    try:
        return _import(name, *arguments, **more)
    finally:
        _depth -= 1
        if not _depth:
            _seconds += _clock() - began


def _age() -> float:
    """Seconds since this process began."""
    started = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - started


_now, _interpreter = time.time(), _age()


def _write() -> None:
    if os.getpid() != _pid:  # a fork of the measured process
        return
    began = _now - _interpreter
    record = {
        "command": sys.orig_argv[1:],
        "began": began,
        "ended": time.time(),
        "interpreter": _interpreter,
        "imports": _seconds,
    }
    with Path(os.environ["VAEBM_RECORD"], f"{_pid}-{began:.3f}.json").open("w") as file:
        json.dump(record, file)


if "VAEBM_RECORD" in os.environ:
    builtins.__import__ = _timed
    atexit.register(_write)
