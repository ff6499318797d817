"""Files with images that another program drew, found without reading them."""

import re
from pathlib import Path

from vaebm.config.base import fingerprint
from vaebm.system.errors import UserError, shorten
from vaebm.system.files import found_at


def foreign_files(path: Path) -> list[Path]:
    """The PNG files of a folder and its subfolders in natural order (2 before 10), or the .npy or .npz file itself.

    Hidden files are skipped.

    Raises:
        UserError: there is something else.
    """
    kind = found_at(path)
    if kind == "a file" and path.suffix in (".npy", ".npz"):
        return [path]
    found = {str(one.relative_to(path)): one for one in path.rglob("*") if not one.is_dir()}
    shown = {name: one for name, one in found.items() if not re.search(r"(^|/)\.", name)}
    if (others := sorted(name for name in shown if not name.lower().endswith(".png"))) or not shown:
        what = f"{shorten(others[0])} in it" if others else "a folder without any" if kind == "a folder" else kind
        raise UserError(f"{path}: expected a folder with nothing but PNG files, or a file .npy or .npz, found {what}")
    return [shown[name] for name in sorted(shown, key=_natural)]


def _natural(name: str) -> tuple[list[str | int], str]:
    """Key by which 2.png comes before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def foreign_state(place: Path) -> str:
    """Fingerprint of names, sizes and times of the files, which changes with their content."""
    states = [(path, path.stat()) for path in foreign_files(place)]
    return fingerprint([[str(path), state.st_size, state.st_mtime_ns] for path, state in states])
