"""Compares a prepared data set with its pin, the hash of its bytes in data.dvc.

Equal bytes fill DVC's cache, for `dvc status` and `dvc push`; other bytes stop the run. Pins are never changed.
"""

import fcntl
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from vaebm.config.yaml_files import read_yaml
from vaebm.system.errors import UserError


def run(folder: Path, pins: Path) -> None:
    """Compare the data set in `folder` with its entry in `pins`, and fill DVC's cache.

    Sets without an entry are skipped. If DVC cannot run, for instance without .git, only the comparison is made.

    Raises:
        UserError: the bytes are not those that were pinned.
    """
    listed = _listed(pins)
    name = folder.resolve().relative_to(pins.parent.resolve()).as_posix()
    if name not in listed:
        advice = f"`dvc add {folder}` pins it in a file of its own"
        print(f"{folder}: not listed in {pins}, so nothing to compare with; {advice}")
        return
    found = folder_hash(folder)
    if found != listed[name]:
        raise UserError(
            f"{folder}: expected the bytes that {pins} pins ({listed[name]}), found others ({found}); "
            "remove the folder and prepare it again"
        )
    print(f"{folder}: the bytes are those that {pins} pins")
    absent = [other for other in listed if not (pins.parent / other).exists()]
    if absent:
        print(f"{folder}: DVC's cache was not filled: {pins} also lists {', '.join(absent)}, which is not here")
    elif problem := _commit(pins):
        print(f"{folder}: DVC's cache was not filled: {problem}")


def _listed(pins: Path) -> dict[str, str]:
    """Path of every pinned set → its hash."""
    content: Any = read_yaml(pins)
    try:
        return {out["path"]: out["md5"] for out in content["outs"]}
    except (KeyError, TypeError):
        raise UserError(
            f"{pins}: expected a file of DVC with outs, each with a path and an md5, found something else"
        ) from None


def folder_hash(folder: Path) -> str:
    """DVC's hash of a folder, computed from its files' names and hashes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = [
        {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "relpath": path.relative_to(folder).as_posix()}
        for path in files
    ]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def _commit(pins: Path) -> str | None:
    """Fill the cache; returns a one-line problem, or None.

    Not `dvc add` and not `--force`, which would pin any bytes.
    """
    with pins.open() as lock:  # DVC refuses to run twice at once in one project
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "dvc", "commit", "--quiet", "--no-relink", pins.name]
        done = subprocess.run(command, cwd=pins.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else f"dvc commit ended with status {done.returncode}"
