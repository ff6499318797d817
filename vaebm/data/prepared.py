"""The prepared format: memory-mapped uint8 arrays described by a manifest."""

import json
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaebm.config import DATASETS, fingerprint
from vaebm.system.errors import UserError, brief, listed
from vaebm.system.files import checksum, found_at, warn_unverified, write_json, writing

Splits = dict[str, tuple[int, int]]
"""Name of a split → (first, last + 1)."""

Prepared = tuple[NDArray[np.uint8], NDArray[np.int64], Splits, dict[str, Any]]
"""Data set before writing: images (N, H, W, C), labels (N,), splits, origin."""

AGAIN = "remove the folder and prepare it again"

USERS = "user's files"
"""Key of the source in the manifest of a set of the user's files."""


@dataclass(frozen=True)
class ImageSet:
    """Prepared data set.

    Attributes:
        name: name of the data set.
        images: (N, H, W, C) uint8, a memory map.
        labels: (N,) int64.
        splits: name of a split → (first, last + 1) in `images`.
        hash: SHA-256 of the manifest, which contains the hashes of the arrays.
        users: whether the images are the user's files, not a published set.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    splits: Splits
    hash: str
    users: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    def view(self, name: str) -> NDArray[np.uint8]:
        """Memory map of the images (n, H, W, C) of one split."""
        first, last = self.splits[name]
        return self.images[first:last]

    def split(self, name: str, most: int | None = None) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) uint8 and labels (n,) int64 of one split, or of its first `most` images."""
        first, last = self.splits[name]
        last = last if most is None else min(last, first + most)
        images = np.array(self.images[first:last].transpose(0, 3, 1, 2), order="C")  # a single copy: sets may be large
        return torch.from_numpy(images), torch.from_numpy(np.array(self.labels[first:last]))


def write_images(
    folder: Path,
    name: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    splits: Splits,
    source: dict[str, Any],
) -> None:
    """Write a prepared data set; the manifest is last, so that incomplete folders have none."""
    with writing(folder / "images.npy") as stream:
        np.save(stream, np.ascontiguousarray(images))
    describe_images(folder, name, labels, splits, source)


def describe_images(folder: Path, name: str, labels: NDArray[np.int64], splits: Splits, source: dict[str, Any]) -> None:
    """Write labels and manifest for the images.npy in `folder`, and print a summary."""
    shape = np.load(folder / "images.npy", mmap_mode="r").shape
    with writing(folder / "labels.npy") as stream:
        np.save(stream, np.ascontiguousarray(labels))
    manifest = {
        "dataset": name,
        "images": shape[0],
        "shape": list(shape[1:]),
        "splits": {split: list(bounds) for split, bounds in splits.items()},
        "source": source,
        "sha256": {file: checksum(folder / file) for file in ("images.npy", "labels.npy")},
    }
    if name not in DATASETS:  # the counts of published sets are known, and the default sets pinned without a hash
        manifest["hash"] = fingerprint(manifest)
    write_json(folder / "manifest.json", manifest)
    parts = ", ".join(f"{split} {last - first:,}" for split, (first, last) in splits.items())
    counts = {**source.get(USERS, {}), **source.get("converted", {})}
    more = "".join(f"; {what}: {number:,}" for what, number in counts.items() if isinstance(number, int))
    if classes := source.get(USERS, {}).get("classes"):
        more += f"; {len(classes):,} classes: {listed(classes, 10)}"
    print(f"{folder}: {shape[0]:,} images ({parts}){more}")


def open_images(manifest: Path) -> ImageSet:
    """Open a prepared data set and check its arrays against the manifest.

    Raises:
        UserError: a file is missing, has another shape or type, or other bytes.
    """
    if found_at(manifest) != "a file":
        raise UserError(
            f"{manifest}: expected the manifest of a prepared data set, found none; Snakemake makes it, or "
            f"`vaebm data NAME --folder {manifest.parent}`, "
            "for a set with settings of its own with --settings results/data/NAME.yaml"
        )
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        shape, count = tuple(content["shape"]), content["images"]
        splits = {
            split: (operator.index(first), operator.index(last)) for split, (first, last) in content["splits"].items()
        }
        middle, facts = splits["train"][1], DATASETS.get(name := content["dataset"])
        if splits != {"train": (0, middle), "heldout": (middle, count)} or not 0 <= middle <= count:
            raise ValueError(f"splits {splits} of {count} images")
        if facts and facts.train and count == facts.train + (facts.heldout or 0) and middle != facts.train:
            raise ValueError(f"{middle} training images of {name} instead of {facts.train}")
        whole = content.pop("hash", None)
        if whole not in (None, fingerprint(content)):
            raise ValueError("other values than those that were written")
        checksums = {file: str(content["sha256"][file]) for file in ("images.npy", "labels.npy")}
        users = USERS in content["source"]
    except Exception as error:  # of any other content
        raise UserError(
            f"{manifest}: not a manifest of a prepared data set ({type(error).__name__}: {brief(error)}); {AGAIN}"
        ) from None
    if whole is None and facts is None:
        warn_unverified(manifest, f"to have one, {AGAIN}")
    images = _open(manifest.parent / "images.npy", (count, *shape), np.uint8, checksums)
    labels = _open(manifest.parent / "labels.npy", (count,), np.int64, checksums)
    return ImageSet(name, images, labels, splits, checksum(manifest), users)


def _open(path: Path, shape: tuple[int, ...], dtype: type, checksums: dict[str, str]) -> NDArray[Any]:
    """Memory map of an array, checked against its shape, type and checksum."""
    expected = f"({brief(', '.join(map(str, shape)))}) {np.dtype(dtype).name}"
    array = None
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        found = f"({', '.join(map(str, array.shape))}) {brief(array.dtype.name)}"
    except FileNotFoundError:
        found = "no file"
    except Exception:  # NumPy raises many classes for damaged files
        array, found = None, "a file that is not a whole .npy array"
    if array is None or array.shape != shape or array.dtype != dtype:
        raise UserError(f"{path}: expected {expected}, found {found}; {AGAIN}")
    if checksum(path) != checksums[path.name]:
        raise UserError(
            f"{path}: expected the bytes that manifest.json names, found others (damaged or edited); {AGAIN}"
        )
    return array
