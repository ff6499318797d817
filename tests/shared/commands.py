"""The command line in a process of its own, and where it may leave no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def vaebm(*arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A finished `vaebm` in `folder`; its output is UTF-8 if the environment does not say otherwise."""
    return run("-m", "vaebm", *arguments, folder=folder, **environment)


def run(*arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A finished `python` in `folder`, which has no traceback."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def refused(*arguments: object, folder: Path, **environment: str) -> str:
    """The one short line with which `vaebm` refuses."""
    done = vaebm(*arguments, folder=folder, **environment)
    lines = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 1 and len(lines) == 1 and len(lines[0]) <= 1000, (done.returncode, done.stderr)
    return lines[0]
