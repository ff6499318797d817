"""User's files: a folder of pictures, or arrays in a .npz file.

The images with the smallest hashes are held out, so order and names do not matter, and equal images are in one split.
"""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaebm.config import DataSettings
from vaebm.data.convert_large import LazyImages
from vaebm.data.decode import Decoded, read_resized
from vaebm.data.download import checksums, folder_of, shown, whole_checksum
from vaebm.data.prepared import USERS, Prepared
from vaebm.system.child import reading
from vaebm.system.errors import UserError, brief, listed
from vaebm.system.files import checksum

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".jpe", ".apng", ".dib", ".pbm", ".pnm"),
)
"""Suffixes of pictures that are read."""

FOREIGN = (
    *(".avif", ".avifs", ".heic", ".heics", ".heif", ".hif", ".jxl", ".tga"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpm", ".jpx"),
)
"""Suffixes of pictures that are refused by name, not skipped."""

SYSTEM = ("@eadir", "lost+found", "__macosx", "$recycle.bin", "system volume information", "#recycle", "#snapshot")
"""Folders of systems, in small letters, in which no picture is the user's."""

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing", "heldout", "held-out")
"""Folders, in small letters, which are no classes where there are no others."""

ARRAYS = ("images", "labels", "heldout_images", "heldout_labels")
"""Arrays of a .npz file; others are not read."""

LABEL_LIMIT = 1 << 16
"""Labels are below this limit, because the largest label determines the size of the classifier."""


def split_by_hash(hashes: list[str], fraction: float, where: str) -> tuple[list[int], list[int]]:
    """Indices of training and of held-out images: those with the smallest hashes are held out, up to the `fraction`.

    Equal images are together. A group of them that is larger than half of the held-out part, or than what is left of
    it, is trained on: otherwise the held-out images could be copies of one. A fraction below 1 leaves at least the
    images of one hash for training; 1, for OOD sets, holds out all.

    Raises:
        UserError: there are no two different images, or no group is small enough.
    """
    if fraction == 1:
        return [], list(range(len(hashes)))
    sizes = Counter(hashes)
    if len(sizes) < 2:
        raise UserError(
            f"{where}: expected at least two different images, so that one can be held out, found {len(sizes)}"
        )
    target = max(round(fraction * len(hashes)), 1)
    held: set[str] = set()
    for most in (target // 2, target):  # the second for sets so small that one group is the whole part
        left = target
        for one in sorted(sizes) if not held else ():
            if len(held) < len(sizes) - 1 and sizes[one] <= min(most, left):
                held.add(one)
                left -= sizes[one]
    if not held:
        raise UserError(
            f"{where}: expected images of which at most {target} are equal (data.heldout of {len(hashes):,}), found "
            f"every one at least {min(sizes.values()):,} times; remove copies, or choose a larger data.heldout"
        )
    train = [number for number, found in enumerate(hashes) if found not in held]
    return train, [number for number, found in enumerate(hashes) if found in held]


def _files(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> list[Path]:
    """All files in a folder and its subfolders, without hidden folders; follows links, but not into a parent folder.

    Raises:
        UserError: a folder cannot be read.
    """
    try:
        status = folder.stat()
        own = (status.st_dev, status.st_ino)
        entries = [(path, path.is_dir()) for path in folder.iterdir()] if own not in above else []
    except (OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "too many folders in each other"
        raise UserError(
            f"{shown(folder)}: expected a folder of pictures, found one that cannot be read: {reason}"
        ) from None
    folders = [path for path, is_folder in entries if is_folder and not path.name.startswith(".")]
    deeper = [file for path in folders for file in _files(path, above | {own})]
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
    found = [path for path in files if _is_picture(path.relative_to(folder))]
    if broken := [path for path in found if not path.is_file()]:
        more = f" and {len(broken) - 1:,} more such" if len(broken) > 1 else ""
        raise UserError(
            f"{shown(broken[0])}{more}: expected a picture, found a broken link or no file; replace or remove it"
        )
    if not found:
        raise UserError(
            f"{folder}: expected pictures ({', '.join(SUFFIXES)}), found {len(files)} files and none of these"
        )
    classes = sorted({path.relative_to(folder).parts[0] for path in found if path.parent != folder})
    if len(classes) > 1 and {name.lower() for name in classes} <= {*SPLITS}:
        raise UserError(
            f"{folder}: expected a folder for each class, found the parts of a set that is split already "
            f"({listed(classes)}); data.path may name one of them"
        )
    others = {path.relative_to(folder).parts[0] for path in files if path.parent != folder} - {*classes}
    if left_out := sorted(name for name in others if name.lower() not in SYSTEM):
        print(f"{folder}: no pictures are in {listed(left_out)}, so that is no class")
    hashes = checksums(found, threads)
    train, heldout = split_by_hash(hashes, data.heldout, str(folder))
    chosen = [found[number] for number in train + heldout]
    if classes and (lone := next((path for path in chosen if path.parent == folder), None)):
        raise UserError(
            f"{shown(lone)}: expected every picture in the folder of its class ({listed(classes[:3])}, …), "
            "or all of them in none, found one beside"
        )
    labels = [classes.index(path.relative_to(folder).parts[0]) if classes else 0 for path in chosen]
    counts = {"other files": len(files) - len(found), "duplicates": len(found) - len(set(hashes))}
    about = {"sha256": whole_checksum(folder, found, hashes), "pictures": len(found), **counts, "classes": classes}
    source = {USERS: {key: value for key, value in about.items() if value}}

    def read(path: Path) -> Decoded:
        with path.open("rb") as file:
            return read_resized(file, channels, side)

    parts = {"train": chosen[: len(train)], "heldout": chosen[len(train) :]}
    return LazyImages((side, side, channels), parts, source, read, np.array(labels, np.int64))


def _is_picture(inside: Path) -> bool:
    """Whether a file, by its path inside the folder, is read as a picture or refused as one of a foreign kind."""
    hidden = inside.name.startswith(".") or any(part.lower() in SYSTEM for part in inside.parts[:-1])
    return inside.suffix.lower() in SUFFIXES + FOREIGN and not hidden


def prepare_arrays(data: DataSettings, threads: int) -> Prepared:
    """Arrays of a .npz file: `images` (N, side, side, channels) uint8 and `labels` (N,), integers from 0.

    `heldout_images` and `heldout_labels` have the same form; without them the setting `heldout` is the fraction of
    `images` to hold out.

    Raises:
        UserError: the file is damaged, or its arrays have another form.
    """
    path = folder_of(data)
    reading(str(path))
    try:
        with np.load(path, allow_pickle=False) as content:
            names = sorted(content.files)
            arrays = {name: np.asarray(content[name]) for name in ARRAYS if name in names}
    except Exception as error:  # NumPy, zipfile and zlib raise many classes for damaged files, or for a single array
        raise UserError(
            f"{path}: expected a file .npz with the arrays images and labels, found something unreadable "
            f"({brief(error)})"
        ) from None
    own = {"heldout_images", "heldout_labels"} & set(arrays)
    for name in (*ARRAYS[:2], *(ARRAYS[2:] if own else ())):
        if name not in arrays:
            raise UserError(f"{path}: expected an array {name}, found {listed(names) or 'none'}")
    images, labels = _arrays(path, arrays, "", data)
    source = {USERS: {"sha256": checksum(path)}}
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
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    if images.dtype != np.uint8 or images.shape[1:] != (data.side, data.side, data.channels) or not len(images):
        expected = f"(N, {data.side}, {data.side}, {data.channels}) uint8 (data.side, data.channels)"
        raise UserError(f"{path}: {prefix}images: expected {expected}, found {_form(images)}")
    integers = labels.shape == (len(images),) and labels.dtype.kind in "iu"
    if not (integers and labels.min() >= 0 and labels.max() < LABEL_LIMIT):
        values = f" from {labels.min()} to {labels.max()}" if labels.dtype.kind in "iu" and labels.size else ""
        expected = f"({len(images)}) integers from 0 to {LABEL_LIMIT - 1:,}"
        raise UserError(f"{path}: {prefix}labels: expected {expected}, found {_form(labels)}{values}")
    return images.astype(np.uint8, copy=False), labels.astype(np.int64)


def _form(array: NDArray[np.generic]) -> str:
    """Shape and type of an array, in words."""
    return brief(f"({', '.join(map(str, array.shape))}) {array.dtype}")
