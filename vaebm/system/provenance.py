"""Provenance of results: commit of the program, uncommitted changes, versions of libraries."""

import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROGRAM = ("vaebm", "workflow", "config", "plugins", "Snakefile")
"""Files of the repository on which results depend."""

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "pillow", "torch-fidelity")
"""Packages whose version may change results."""

UNKNOWN = "unknown"


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of git; None without git, outside a repository, or after an error."""
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def commit(folders: tuple[Path, ...] | None = None) -> dict[str, str | bool]:
    """Commit of the program's repository, and whether `PROGRAM` has uncommitted changes.

    Args:
        folders: candidates for the repository, in order; default: the parent of the package, then the current folder.

    Returns:
        {"commit": full hash, "changed": bool}; both "unknown" without git or outside the repository.
    """
    for folder in folders or (Path(__file__).parents[2], Path.cwd()):
        # skip the repository of another project, in whose environment the package is installed
        if not _git(folder, "ls-files", "--", "vaebm/__init__.py"):
            continue
        head, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--", *PROGRAM)
        if head is not None and status is not None:
            return {"commit": head.strip(), "changed": bool(status.strip())}
    return {"commit": UNKNOWN, "changed": UNKNOWN}


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Provenance of a result of several parts.

    Args:
        parts: each with "changed", and with "commit", one hash or a list.

    Returns:
        {"commit": all hashes, sorted, "changed": whether any part was, "unknown" if one of them is}.
    """
    found = [(part["commit"], part["changed"]) for part in parts]
    commits = {commit for given, _ in found for commit in ([given] if isinstance(given, str) else given)}
    changed = [changed for _, changed in found]
    return {"commit": sorted(commits), "changed": UNKNOWN if UNKNOWN in changed else any(changed)}


def versions() -> dict[str, str]:
    """Versions of Python and `LIBRARIES`; "unknown" without metadata."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in LIBRARIES}}


def version_of(package: str) -> str:
    """Version of an installed package; "unknown" without metadata."""
    try:
        return version(package)
    except PackageNotFoundError:
        return UNKNOWN
