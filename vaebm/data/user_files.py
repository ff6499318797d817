"""Files of the user's: a folder of pictures, or arrays in a .npz file.

What is held out follows from the bytes alone: the images whose hashes are the smallest, so that neither order nor names matter,
and equal ones are never on both sides.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaebm.config import DataSettings
from vaebm.data.convert_large import Pictures
from vaebm.data.decode import Converted, fitted, read_picture
from vaebm.data.download import checksum, checksums, folder_of, shown
from vaebm.data.prepared import USERS, Prepared
from vaebm.system.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of the pictures that are read."""

FOREIGN = (".avif", ".heic", ".heif", ".jp2", ".jxl")
"""Endings of pictures that are not read: taken as well, so that they are refused by name and never left out in silence."""

CLASSES = 1 << 16
"""Labels are below: a classifier is built with as many outputs as the largest label asks for."""


def split_by_hash(hashes: list[str], fraction: float, where: str) -> tuple[list[int], list[int]]:
    """Numbers of the images to train on and of those held out: the given fraction, whose hashes are the smallest, equal ones together.

    However large the fraction is below 1, the images of one hash stay to train on; at 1, for OOD detection, all are held out.

    Raises:
        UserError: there are no two different images.
    """
    if fraction == 1:
        return [], list(range(len(hashes)))
    different = sorted(set(hashes))
    if len(different) < 2:
        raise UserError(
            f"{where}: expected at least two different images, so that one can be held out, found {len(different)}"
        )
    limit = min(sorted(hashes)[max(round(fraction * len(hashes)), 1) - 1], different[-2])
    train = [number for number, found in enumerate(hashes) if found > limit]
    return train, [number for number, found in enumerate(hashes) if found <= limit]


def _files(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> list[Path]:
    """All that is in a folder and the folders in it but hidden ones, links followed; a folder inside itself is entered once.

    Raises:
        UserError: one of the folders cannot be read.
    """
    try:
        status = folder.stat()
        own = (status.st_dev, status.st_ino)
        entries = [(path, path.is_dir()) for path in folder.iterdir()] if own not in above else []
    except OSError as error:
        raise UserError(
            f"{shown(folder)}: expected a folder of pictures, found one that cannot be read: {error.strerror or error}"
        ) from None
    deeper = [
        file
        for path, is_folder in entries
        if is_folder and not path.name.startswith(".")
        for file in _files(path, above | {own})
    ]
    return [path for path, is_folder in entries if not is_folder] + deeper


def prepare_folder(data: DataSettings, threads: int) -> Pictures:
    """All pictures of a folder and the folders in it, made `side`×`side` with `channels` channels by the rules of `vaebm.data.decode`.

    The first folder that a picture is in is its class, in the order of the names; without such folders all labels are 0. Links are
    followed. Other files and hidden ones are left alone and counted.

    Raises:
        UserError: there is no such folder, one in it cannot be read, a picture is a broken link, or there are too few of them.
    """
    assert data.side is not None and data.channels is not None and data.heldout is not None
    folder, side, channels = folder_of(data), data.side, data.channels
    files = sorted(_files(folder))
    found = [path for path in files if path.suffix.lower() in SUFFIXES + FOREIGN and not path.name.startswith(".")]
    if broken := [path for path in found if not path.is_file()]:
        more = f" and {len(broken) - 1:,} more such" if len(broken) > 1 else ""
        raise UserError(
            f"{shown(broken[0])}{more}: expected a picture, found a broken link or no file; replace or remove it"
        )
    if not found:
        raise UserError(
            f"{folder}: expected pictures ({', '.join(SUFFIXES)}), found {len(files)} files and none of these"
        )
    hashes = checksums(found, threads)
    train, heldout = split_by_hash(hashes, data.heldout, str(folder))
    chosen = [found[number] for number in train + heldout]
    inside = [path.relative_to(folder).parts for path in chosen]
    classes = sorted({parts[0] for parts in inside if len(parts) > 1})
    labels = np.array([classes.index(parts[0]) if len(parts) > 1 else 0 for parts in inside], np.int64)
    if classes and any(len(parts) == 1 for parts in inside):
        lone = next(path for path, parts in zip(chosen, inside, strict=True) if len(parts) == 1)
        raise UserError(
            f"{shown(lone)}: expected every picture in the folder of its class ({', '.join(classes[:3])}, …), or all of them in none, found one beside"
        )
    whole = hashlib.sha256()
    for path, one in zip(found, hashes, strict=True):
        whole.update(os.fsencode(path.relative_to(folder).as_posix()) + b"\0" + one.encode() + b"\n")
    counts = {"other files": len(files) - len(found), "duplicates": len(found) - len(set(hashes))}
    source = {
        USERS: {
            "sha256": whole.hexdigest(),
            "pictures": len(found),
            **{what: number for what, number in counts.items() if number},
        }
    }
    if classes:
        source[USERS]["classes"] = classes

    def read(number: int) -> Converted:
        with chosen[number].open("rb") as file:
            image, done = read_picture(file, channels)
        made, more = fitted(image, side)
        return made, done + more

    splits = {"train": (0, len(train)), "heldout": (len(train), len(chosen))}
    return Pictures((side, side, channels), labels, splits, source, read, lambda number: str(chosen[number]))


def prepare_arrays(data: DataSettings) -> Prepared:
    """The arrays of a .npz file: `images` (N, side, side, channels) uint8 and `labels` (N,), integers from 0.

    `heldout_images` and `heldout_labels` of the same form are the held-out ones; without them the setting `heldout` says which
    fraction of `images` is.

    Raises:
        UserError: the file is damaged, or its arrays have another form.
    """
    path = folder_of(data)
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        AttributeError,
        TypeError,
    ) as error:  # the last two: a lone array
        raise UserError(
            f"{path}: expected a file .npz with the arrays images and labels, found something unreadable ({error})"
        ) from None
    own = {"heldout_images", "heldout_labels"} & set(arrays)
    images, labels = _arrays(path, arrays, "", data)
    source = {USERS: {"sha256": checksum(path, "sha256")}}
    if own and data.heldout is not None:
        raise UserError(
            f"{path}: the file has images of its own to hold out ({', '.join(sorted(own))}); leave the setting data.heldout out"
        )
    if own:
        held, held_labels = _arrays(path, arrays, "heldout_", data)
        splits = {"train": (0, len(images)), "heldout": (len(images), len(images) + len(held))}
        return np.concatenate([images, held]), np.concatenate([labels, held_labels]), splits, source
    if data.heldout is None:
        raise UserError(
            f"{path}: the file has no arrays heldout_images and heldout_labels: expected data.heldout, the fraction of the images to hold out"
        )
    train, heldout = split_by_hash(
        [hashlib.sha256(image.tobytes()).hexdigest() for image in images], data.heldout, str(path)
    )
    return (
        images[train + heldout],
        labels[train + heldout],
        {"train": (0, len(train)), "heldout": (len(train), len(images))},
        source,
    )


def _arrays(
    path: Path, arrays: dict[str, NDArray[np.generic]], prefix: str, data: DataSettings
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of one split, their form checked."""
    for name in (f"{prefix}images", f"{prefix}labels"):
        if name not in arrays:
            raise UserError(f"{path}: expected an array {name}, found {', '.join(sorted(arrays)) or 'none'}")
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1:] != (data.side, data.side, data.channels)
        or not len(images)
    ):
        expected = f"(N, {data.side}, {data.side}, {data.channels}) uint8 (data.side, data.channels)"
        raise UserError(
            f"{path}: {prefix}images: expected {expected}, found ({', '.join(map(str, images.shape))}) {images.dtype}"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= CLASSES:
        values = f" from {labels.min()} to {labels.max()}" if labels.dtype.kind in "iu" and labels.size else ""
        expected = f"({len(images)}) integers from 0 to {CLASSES - 1:,}"
        raise UserError(
            f"{path}: {prefix}labels: expected {expected}, found ({', '.join(map(str, labels.shape))}) {labels.dtype}{values}"
        )
    return images.astype(np.uint8, copy=False), labels.astype(np.int64)
