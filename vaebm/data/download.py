"""Raw files with published checksums: downloaded by torchvision, or at a path of the user; verified in both cases."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from vaebm.config import DataSettings
from vaebm.config.datasets import missing_files, raw_folder
from vaebm.system.device import Progress
from vaebm.system.errors import UserError, brief
from vaebm.system.files import checksum, locked

Source = dict[str, dict[str, str]]
"""Name of each raw file → kind of checksum → checksum, for the manifest."""


class PublishedFile(NamedTuple):
    """Published raw file."""

    name: str
    md5: str
    urls: tuple[str, ...] = ()
    """Mirrors; empty: Google Drive."""
    drive: str = ""
    """Identifier on Google Drive."""


def folder_of(data: DataSettings) -> Path:
    """Folder, or .npz file, of the raw files.

    Raises:
        UserError: raw files are absent and cannot be downloaded.
    """
    if problem := missing_files(data.dataset, data.path):
        raise UserError(problem)
    return raw_folder(data.dataset, data.path)


def verified(data: DataSettings, *files: PublishedFile) -> tuple[Path, Source]:
    """Folder with all `files`, and their checksums; without `data.path`, missing and damaged files are downloaded.

    Raises:
        UserError: a file is absent, cannot be downloaded, or differs from the published one.
    """
    folder = folder_of(data)
    url = data.facts.raw.url if data.facts.raw else ""
    fetched = [file for file in files if data.path is None and (file.urls or file.drive)]
    if fetched:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / ".fetching"):  # stacks and their images have the same raw files
                for file in fetched:
                    _fetch(file, folder, url)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written: {error.strerror or error}; "
                "data.path names another place of the raw files"
            ) from None
    for file in [file for file in files if file not in fetched]:
        path = folder / file.name
        if not path.is_file():
            raise UserError(f"{path}: expected the file that {url} offers, found none")
        if (found := checksum(path, "md5")) != file.md5:
            raise UserError(
                f"{path}: expected the published file (MD5 {file.md5}), found another (MD5 {found}), damaged or "
                f"changed; get it anew from {url}, or use images of your own through the data set arrays"
            )
    return folder, {file.name: {"md5": file.md5} for file in files}


def shown(name: Path | str) -> str:
    """Name of a file in errors, escaped where it is not printable in one line."""
    return str(name) if str(name).isprintable() else ascii(str(name))


def checksums(paths: list[Path], threads: int) -> list[str]:
    """SHA-256 of each file.

    Raises:
        UserError: a file cannot be read.
    """
    progress, found = Progress("checksums", len(paths), unit="file"), []
    with ThreadPoolExecutor(threads) as pool:
        for one in pool.map(checksum, paths):
            found.append(one)
            progress.advance()
    progress.close()
    return found


def whole_checksum(folder: Path, paths: list[Path], hashes: list[str]) -> str:
    """SHA-256 of the names of files in a folder, and of their hashes."""
    whole = hashlib.sha256()
    for path, one in zip(paths, hashes, strict=True):
        whole.update(os.fsencode(path.relative_to(folder).as_posix()) + b"\0" + one.encode() + b"\n")
    return whole.hexdigest()


def torchvision_datasets() -> Any:
    """`torchvision.datasets`, which has addresses and checksums; the import takes seconds."""
    import vaebm.system.torchvision_shim  # noqa: F401, I001  # before torchvision
    import torchvision.datasets

    return torchvision.datasets


def _fetch(file: PublishedFile, folder: Path, owners: str) -> None:
    """Download a file into `folder`, unless it is there; `owners` is their page, for the error."""
    utils = torchvision_datasets().utils
    problems = []
    for url in file.urls or (file.drive,):
        try:
            if file.drive:
                utils.download_file_from_google_drive(file.drive, folder, file.name, file.md5)
            else:
                utils.download_url(url, folder, file.name, file.md5)
            return
        except Exception as error:  # gdown and unexpected pages raise errors of many classes
            problems.append(brief(error))
    where = " or ".join(file.urls) or "Google Drive"
    raise UserError(
        f"{folder / file.name}: could not be fetched from {where} ({problems[-1]}); "
        f"get it from {owners} and put it there, MD5 {file.md5}"
    )
