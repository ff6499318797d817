"""Where a figure comes from: the commit of the program, whether it was changed since, the versions of the libraries."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROGRAM = ("vaebm", "workflow", "config", "Snakefile")
"""What a figure depends on in the repository."""

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "pillow", "torch-fidelity")
"""Packages whose version may change a figure."""

UNKNOWN = "unknown"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git, no repository, or git refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def commit(folders: tuple[Path, ...] | None = None) -> dict[str, str | bool]:
    """Commit of the repository that the program lives in, and whether `PROGRAM` is changed there.

    Args:
        folders: where to look, the first that holds this program's repository counts; the folder that the package lies
            in, then the current one.

    Returns:
        {"commit": full hash, "changed": bool}; both "unknown" without git or outside such a repository.
    """
    for folder in folders or (Path(__file__).parents[2], Path.cwd()):
        # a package installed into another project's environment lies in that project's repository: not our commit
        if not _git(folder, "ls-files", "--", "vaebm/__init__.py"):
            continue
        head, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--", *PROGRAM)
        if head is not None and status is not None:
            return {"commit": head.strip(), "changed": bool(status.strip())}
    return {"commit": UNKNOWN, "changed": UNKNOWN}


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The origin of what several parts went into.

    Args:
        parts: each with "changed", and with "commit", one or a list of them.

    Returns:
        {"commit": all of them in order, "changed": whether any was, "unknown" if that is of one}.
    """
    found = [(part["commit"], part["changed"]) for part in parts]
    commits = {commit for given, _ in found for commit in ([given] if isinstance(given, str) else given)}
    changed = [changed for _, changed in found]
    return {"commit": sorted(commits), "changed": UNKNOWN if UNKNOWN in changed else any(changed)}


def versions() -> dict[str, str]:
    """Version of Python and of every library in `LIBRARIES`; "unknown" for one without metadata."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = UNKNOWN
    return found
