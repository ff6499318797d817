"""User's files: a folder of pictures, or arrays in a .npz file.

The images with the smallest hashes are held out, so order and names do not matter, and equal images are in one split.
"""

import hashlib
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaebm.config import DataSettings
from vaebm.data.convert_large import LazyImages
from vaebm.data.decode import Decoded, read_resized
from vaebm.data.download import checksum, checksums, folder_of, shown
from vaebm.data.prepared import USERS, Prepared
from vaebm.system.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Suffixes of pictures that are read."""

FOREIGN = (".avif", ".heic", ".heif", ".jp2", ".jxl")
"""Suffixes of pictures that are refused by name, not skipped."""

UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError)
"""Errors of `np.load` for damaged files, or, the last two, for a single array."""

LABEL_LIMIT = 1 << 16
"""Labels are below this limit, because the largest label determines the size of the classifier."""


def split_by_hash(hashes: list[str], fraction: float, where: str) -> tuple[list[int], list[int]]:
    """Indices of training and of held-out images: the `fraction` with the smallest hashes, equal images together.

    A fraction below 1 leaves at least the images of one hash for training; 1, for OOD sets, holds out all.

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
    """All files in a folder and its subfolders, without hidden folders; follows links, but not into a parent folder.

    Raises:
        UserError: a folder cannot be read.
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


def prepare_folder(data: DataSettings, threads: int) -> LazyImages:
    """All pictures of a folder and its subfolders, converted to `side`×`side` and `channels` by `vaebm.data.decode`.

    The top subfolder of a picture is its class, in the order of names; without subfolders all labels are 0. Links are
    followed. Other and hidden files are skipped and counted.

    Raises:
        UserError: a folder is absent or cannot be read, a picture is a broken link, or there are too few pictures.
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
            f"{shown(lone)}: expected every picture in the folder of its class ({', '.join(classes[:3])}, …), "
            "or all of them in none, found one beside"
        )
    whole = hashlib.sha256()
    for path, one in zip(found, hashes, strict=True):
        whole.update(os.fsencode(path.relative_to(folder).as_posix()) + b"\0" + one.encode() + b"\n")
    counts = {"other files": len(files) - len(found), "duplicates": len(found) - len(set(hashes))}
    about = {"sha256": whole.hexdigest(), "pictures": len(found), **counts, "classes": classes}
    source = {USERS: {key: value for key, value in about.items() if value}}

    def read(number: int) -> Decoded:
        with chosen[number].open("rb") as file:
            return read_resized(file, channels, side)

    splits = {"train": (0, len(train)), "heldout": (len(train), len(chosen))}
    return LazyImages((side, side, channels), labels, splits, source, read, lambda number: str(chosen[number]))


def prepare_arrays(data: DataSettings, threads: int) -> Prepared:
    """Arrays of a .npz file: `images` (N, side, side, channels) uint8 and `labels` (N,), integers from 0.

    `heldout_images` and `heldout_labels` have the same form; without them the setting `heldout` is the fraction of
    `images` to hold out.

    Raises:
        UserError: the file is damaged, or its arrays have another form.
    """
    path = folder_of(data)
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except UNREADABLE as error:
        raise UserError(
            f"{path}: expected a file .npz with the arrays images and labels, found something unreadable ({error})"
        ) from None
    own = {"heldout_images", "heldout_labels"} & set(arrays)
    images, labels = _arrays(path, arrays, "", data)
    source = {USERS: {"sha256": checksum(path, "sha256")}}
    if own and data.heldout is not None:
        raise UserError(
            f"{path}: the file has images of its own to hold out ({', '.join(sorted(own))}); "
            "leave the setting data.heldout out"
        )
    if own:
        held, held_labels = _arrays(path, arrays, "heldout_", data)
        splits = {"train": (0, len(images)), "heldout": (len(images), len(images) + len(held))}
        return np.concatenate([images, held]), np.concatenate([labels, held_labels]), splits, source
    if data.heldout is None:
        raise UserError(
            f"{path}: the file has no arrays heldout_images and heldout_labels: "
            "expected data.heldout, the fraction of the images to hold out"
        )
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    train, heldout = split_by_hash(hashes, data.heldout, str(path))
    splits = {"train": (0, len(train)), "heldout": (len(train), len(images))}
    return images[train + heldout], labels[train + heldout], splits, source


def _arrays(
    path: Path, arrays: dict[str, NDArray[np.generic]], prefix: str, data: DataSettings
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of one split, with checks of their form."""
    for name in (f"{prefix}images", f"{prefix}labels"):
        if name not in arrays:
            raise UserError(f"{path}: expected an array {name}, found {', '.join(sorted(arrays)) or 'none'}")
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    if images.dtype != np.uint8 or images.shape[1:] != (data.side, data.side, data.channels) or not len(images):
        expected = f"(N, {data.side}, {data.side}, {data.channels}) uint8 (data.side, data.channels)"
        raise UserError(
            f"{path}: {prefix}images: expected {expected}, found ({', '.join(map(str, images.shape))}) {images.dtype}"
        )
    if (
        labels.shape != (len(images),)
        or labels.dtype.kind not in "iu"
        or labels.min() < 0
        or labels.max() >= LABEL_LIMIT
    ):
        values = f" from {labels.min()} to {labels.max()}" if labels.dtype.kind in "iu" and labels.size else ""
        expected = f"({len(images)}) integers from 0 to {LABEL_LIMIT - 1:,}"
        raise UserError(
            f"{path}: {prefix}labels: expected {expected}, "
            f"found ({', '.join(map(str, labels.shape))}) {labels.dtype}{values}"
        )
    return images.astype(np.uint8, copy=False), labels.astype(np.int64)
