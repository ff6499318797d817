"""Raw files with published checksums: fetched by torchvision's downloader, or found where the user says; verified either way."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from vaebm.config import DataSettings
from vaebm.config.raw_files import LAYOUTS, absent, place
from vaebm.system.device import Progress
from vaebm.system.errors import UserError

Source = dict[str, dict[str, str]]
"""Name of each raw file → kind of checksum → checksum, for the manifest."""


class Published(NamedTuple):
    """A file that the data's owners offer."""

    name: str
    md5: str
    urls: tuple[str, ...] = ()
    """Where it is; empty: on Google Drive, under `drive`."""
    drive: str = ""


def folder_of(data: DataSettings) -> Path:
    """The folder of the raw files.

    Raises:
        UserError: they are not there, and nothing fetches them.
    """
    if problem := absent(data.dataset, data.path):
        raise UserError(problem)
    return place(data.dataset, data.path)


def verified(data: DataSettings, *files: Published) -> tuple[Path, Source]:
    """The folder with all of `files` in it, and their checksums.

    Without a path of the user's, what is missing or damaged is fetched.

    Raises:
        UserError: a file is not there, cannot be fetched, or has other bytes than were published.
    """
    folder = folder_of(data)
    fetched = [file for file in files if data.path is None and (file.urls or file.drive)]
    if fetched:
        import fcntl  # which Windows lacks

        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / ".fetching").open(
                "w"
            ) as lock:  # another job may want the same files: stacks are made of their images'
                fcntl.flock(lock, fcntl.LOCK_EX)
                for file in fetched:
                    _fetch(file, folder, LAYOUTS[data.dataset].offered)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written: {error.strerror or error}; data.path names another place of the raw files"
            ) from None
    for file in [file for file in files if file not in fetched]:
        path = folder / file.name
        if not path.is_file():
            raise UserError(f"{path}: expected the file that {LAYOUTS[data.dataset].offered} offers, found none")
        elif (found := checksum(path, "md5")) != file.md5:
            raise UserError(
                f"{path}: expected the published file (MD5 {file.md5}), found another (MD5 {found}), damaged or changed; get it anew from "
                f"{LAYOUTS[data.dataset].offered}, or use images of your own through the data set arrays"
            )
    return folder, {file.name: {"md5": file.md5} for file in files}


def checksum(path: Path, kind: str) -> str:
    """Checksum of a file's bytes, by the name of its kind in `hashlib`.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, kind).hexdigest()
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read: {error.strerror or error}") from None


def shown(name: Path | str) -> str:
    """What an error calls a file: its name, or as Python writes it where that would not stay in one line or cannot be printed."""
    return str(name) if str(name).isprintable() else ascii(str(name))


def checksums(paths: list[Path], threads: int) -> list[str]:
    """SHA-256 of each file.

    Raises:
        UserError: one of them cannot be read.
    """
    progress, found = Progress("checksums", len(paths), unit="file"), []
    with ThreadPoolExecutor(threads) as pool:
        for one in pool.map(lambda path: checksum(path, "sha256"), paths):
            found.append(one)
            progress.advance()
    progress.close()
    return found


def torchvision_datasets() -> Any:
    """torchvision's module of data sets, which knows addresses and checksums; importing it takes seconds."""
    import vaebm.system.torchvision_shim  # noqa: F401, I001  # before torchvision
    import torchvision.datasets

    return torchvision.datasets


def _fetch(file: Published, folder: Path, offered: str) -> None:
    utils = torchvision_datasets().utils
    problems = []
    for url in file.urls or (file.drive,):
        try:
            if file.drive:
                utils.download_file_from_google_drive(file.drive, folder, file.name, file.md5)
            else:
                utils.download_url(url, folder, file.name, file.md5)
            return
        except Exception as error:  # gdown has classes of its own, and pages that are no answer end in many others
            problems.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
    where = " or ".join(file.urls) or "Google Drive"
    raise UserError(
        f"{folder / file.name}: could not be fetched from {where} ({problems[-1]}); get it from {offered} and put it there, MD5 {file.md5}"
    )
