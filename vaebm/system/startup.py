"""Fast imports, and the time that a command takes.

Small stages mostly import. torch takes two seconds, and its compiler, which torch's optimisers and torchvision import
without compiling, one more. Imports create a million permanent objects, which the garbage collector would scan.
"""

import atexit
import contextlib
import gc
import importlib
import os
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_loaded = time.monotonic()

_starting: float | None = None
"""Seconds spent on start-up and imports."""

_COMPILER = "torch._dynamo", "torch._dynamo.utils"


class _StandIn(ModuleType):
    """A module with a few of its names; to ask for another one imports the compiler."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and (self.__name__, name) != (_COMPILER[0], "__path__"):
            raise AttributeError(name)  # asked of every module, but for the path of a package's modules
        for each in _COMPILER:
            if isinstance(sys.modules.get(each), _StandIn):
                del sys.modules[each]
        return getattr(importlib.import_module(self.__name__), name)


def import_compiler_later() -> None:
    """Give torch's optimisers and torchvision stand-ins for the compiler, unless it is imported."""
    if _COMPILER[0] in sys.modules:
        return
    compiler, utils = (sys.modules.setdefault(name, _StandIn(name)) for name in _COMPILER)
    for each in (compiler, utils):
        each.__spec__ = ModuleSpec(each.__name__, None)  # importlib.util.find_spec fails without one
    of_torch = {"wrapping": False}  # torch's options for its own functions
    vars(compiler).update(
        graph_break=lambda: None,
        disable=lambda *what, **how: what[0] if how == of_torch else compiler.__getattr__("disable")(*what, **how),
    )
    vars(utils).update(is_compile_supported=lambda kind: utils.__getattr__("is_compile_supported")(kind))


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Within this context the garbage collector is off; objects created in it are never scanned."""
    global _starting
    import_compiler_later()
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
        stat = Path(f"/proc/{process or 'self'}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        uptime = Path("/proc/uptime").read_text(encoding="utf-8").split()[0]
        return float(uptime) - float(stat[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.monotonic() - _loaded


def time_taken() -> str | None:
    """Time that this command took, in words; None before `imports`."""
    return None if _starting is None else f"took {process_age():.1f} s, of which {_starting:.1f} s to start"
