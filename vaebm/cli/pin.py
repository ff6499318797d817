"""Compares a prepared data set with its pin, the hash of its bytes in data.dvc.

Equal bytes fill DVC's cache, for `dvc status` and `dvc push`; other bytes stop the run. Pins are never changed.
"""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from vaebm.config.pipeline import pinned_sets
from vaebm.system.errors import UserError, brief, listed
from vaebm.system.files import locked

PREPARED = ("images.npy", "labels.npy", "manifest.json")
"""Files of a prepared data set."""

IGNORED = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini")
"""Files of file managers, which .dvcignore lists too."""


def run(folder: Path, pins: Path, name: Path | None = None) -> None:
    """Compare the data set in `folder` with its entry in `pins`, a file of DVC, and fill DVC's cache.

    Sets without an entry are skipped. If DVC cannot run, for instance without .git, only the comparison is made.

    Args:
        name: entry of the data set, if `folder` is a copy elsewhere.

    Raises:
        UserError: the bytes are not those that were pinned.
    """
    # `dvc commit` rewrites data.dvc, and refuses to run twice at once in one project
    lock = pins.parent / ".dvc" / "tmp" / "vaebm-pin.lock"
    if is_project := (pins.parent / ".dvc").is_dir():
        lock.parent.mkdir(exist_ok=True)
    with locked(lock) if is_project else nullcontext():
        _run(folder, pins, name or folder)


def _run(folder: Path, pins: Path, entry: Path) -> None:
    """`run`, in one process at a time."""
    pinned = pinned_sets(pins)
    names = [os.path.relpath(entry, pins.parent), os.path.relpath(entry.resolve(), pins.parent.resolve())]
    name = next((name for name in map(Path.as_posix, map(Path, names)) if name in pinned), None)
    if name is None:  # data/ may be a link to another disk, so the name as it is given counts first
        advice = f"`dvc add {folder}` pins it in a file of its own"
        print(f"{folder}: not listed in {pins}, so nothing to compare with; {advice}")
        return
    found = folder_hash(folder)
    if found != pinned[name]:
        more = [path.relative_to(folder).as_posix() for path in _files(folder) if path.name not in PREPARED]
        advice = f"remove {listed(more)} from it" if more else "remove the folder and prepare it again"
        raise UserError(
            f"{folder}: expected the bytes that {pins} pins ({brief(pinned[name])}), found others ({found}); {advice}"
        )
    print(f"{folder}: the bytes are those that {pins} pins")
    if absent := [other for other in pinned if not (pins.parent / other).exists()]:
        print(f"{folder}: DVC's cache was not filled: {pins} also lists {listed(absent)}, which is not here")
        return
    problem = _commit(pins)
    if problem and _remove_damaged_lock(pins.parent / ".dvc" / "tmp" / "rwlock"):
        problem = _commit(pins)
    if problem:
        print(f"{folder}: DVC's cache was not filled: {problem}")


def _remove_damaged_lock(lock: Path) -> bool:
    """Remove a lock file of DVC that a killed process left empty or half-written: every `dvc commit` fails then."""
    try:
        json.loads(lock.read_bytes())
    except ValueError:
        lock.unlink()
        print(f"{lock}: removed: a process that was killed left it damaged")
        return True
    except OSError:
        pass
    return False


def _files(folder: Path) -> list[Path]:
    """Files of a data set, in the order of their paths."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not IGNORED.fullmatch(path.name))


def folder_hash(folder: Path) -> str:
    """DVC's hash of a folder, as in data.dvc."""
    from dvc_data.hashfile.hash import hash_file
    from dvc_data.hashfile.tree import Tree
    from dvc_objects.fs.local import LocalFileSystem

    tree, disk = Tree(), LocalFileSystem()  # type: ignore[no-untyped-call]  # DVC declares no types here
    for path in _files(folder):
        tree.add(path.relative_to(folder).parts, *hash_file(str(path), disk, "md5"))
    tree.digest()
    return str(tree.hash_info.value)


def _commit(pins: Path) -> str | None:
    """Fill the cache; returns a one-line problem, or None.

    Not `dvc add` and not `--force`, which would pin any bytes.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--no-relink", pins.name],
        cwd=pins.parent,
        env=os.environ | {"PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]  # what follows is advice
    reason = brief((errors or lines or [""])[0].removeprefix("ERROR:"))
    return f"{reason} (`dvc commit {pins.name}` ended with status {done.returncode})"
