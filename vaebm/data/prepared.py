"""The one format that images are kept in: uint8 arrays, memory-mapped, described by a manifest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm.data.download import checksum
from vaebm.system.errors import UserError
from vaebm.system.files import write_json, writing

Prepared = tuple[NDArray[np.uint8], NDArray[np.int64], dict[str, tuple[int, int]], dict[str, Any]]
"""A data set before it is written: images (N, H, W, C), labels (N,), name of a split → (first, last + 1), where it came from."""

USERS = "user's files"
"""Key of the source in the manifest of a set that is the user's own."""


@dataclass(frozen=True)
class ImageSet:
    """A prepared data set.

    Attributes:
        name: of the data set.
        images: (N, H, W, C) uint8, a memory map.
        labels: (N,) int64.
        splits: name of a split → (first, last + 1) in `images`.
        hash: of the manifest, which holds the hashes of the arrays' bytes.
        users: whether the images are files of the user's, not a published set.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    splits: dict[str, tuple[int, int]]
    hash: str
    users: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    def view(self, name: str) -> NDArray[np.uint8]:
        """Images (n, H, W, C) of one split, still on the disk."""
        first, last = self.splits[name]
        return self.images[first:last]

    def split(self, name: str, most: int | None = None) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) uint8 and labels (n,) int64 of one split, or of its first `most` images."""
        first, last = self.splits[name]
        last = last if most is None else min(last, first + most)
        images = torch.from_numpy(
            np.array(self.images[first:last].transpose(0, 3, 1, 2), order="C")
        )  # one copy: large sets are many gigabytes
        return images, torch.from_numpy(np.array(self.labels[first:last]))


def write_images(
    folder: Path,
    name: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    splits: dict[str, tuple[int, int]],
    source: dict[str, Any],
) -> None:
    """Write a prepared data set; the manifest comes last, so that a folder without one is never taken for a data set."""
    with writing(folder / "images.npy") as stream:
        np.save(stream, np.ascontiguousarray(images))
    describe_images(folder, name, images.shape, labels, splits, source)


def describe_images(
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    labels: NDArray[np.int64],
    splits: dict[str, tuple[int, int]],
    source: dict[str, Any],
) -> None:
    """Write labels and manifest beside images.npy, which holds images of `shape` (N, H, W, C), and say what there is."""
    with writing(folder / "labels.npy") as stream:
        np.save(stream, np.ascontiguousarray(labels))
    manifest = {
        "dataset": name,
        "images": shape[0],
        "shape": list(shape[1:]),
        "splits": {split: list(bounds) for split, bounds in splits.items()},
        "source": source,
        "sha256": {file: checksum(folder / file, "sha256") for file in ("images.npy", "labels.npy")},
    }
    write_json(folder / "manifest.json", manifest)
    parts = ", ".join(f"{split} {last - first:,}" for split, (first, last) in splits.items())
    counts = {
        what: number
        for part in (USERS, "converted")
        for what, number in source.get(part, {}).items()
        if isinstance(number, int)
    }
    print(
        f"{folder}: {shape[0]:,} images ({parts})" + "".join(f"; {what}: {number:,}" for what, number in counts.items())
    )


def open_images(manifest: Path) -> ImageSet:
    """The data set that `manifest` describes, its arrays checked against it.

    Raises:
        UserError: a file is missing, has another form than the manifest says, or its bytes were changed.
    """
    if not manifest.is_file():
        raise UserError(
            f"{manifest}: expected the manifest of a prepared data set, found none; Snakemake makes it, or `vaebm data NAME --folder {manifest.parent}`, "
            "for a set with settings of its own with --settings results/data/NAME.yaml"
        )
    try:
        content = json.loads(manifest.read_text())
        shape, count = tuple(content["shape"]), content["images"]
        splits = {split: (int(first), int(last)) for split, (first, last) in content["splits"].items()}
        checksums, name, users = content["sha256"], content["dataset"], USERS in content["source"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{manifest}: not a manifest of a prepared data set ({type(error).__name__}: {error}); remove the folder and prepare it again"
        ) from None
    images = _open(manifest.parent / "images.npy", (count, *shape), np.uint8, checksums)
    labels = _open(manifest.parent / "labels.npy", (count,), np.int64, checksums)
    return ImageSet(name, images, labels, splits, hashlib.sha256(manifest.read_bytes()).hexdigest(), users)


def _open(path: Path, shape: tuple[int, ...], dtype: type, checksums: dict[str, str]) -> NDArray[Any]:
    expected = f"({', '.join(map(str, shape))}) {np.dtype(dtype).name}"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: expected {expected}, found no file; remove the folder and prepare it again") from None
    except (ValueError, EOFError, OSError):
        raise UserError(
            f"{path}: expected {expected}, found a file that is not a whole .npy array; remove the folder and prepare it again"
        ) from None
    if array.shape != shape or array.dtype != dtype:
        found = f"({', '.join(map(str, array.shape))}) {array.dtype.name}"
        raise UserError(f"{path}: expected {expected}, found {found}; remove the folder and prepare it again")
    if checksum(path, "sha256") != checksums[path.name]:
        raise UserError(
            f"{path}: expected the bytes that manifest.json names, found others (damaged or edited); remove the folder and prepare it again"
        )
    return array
