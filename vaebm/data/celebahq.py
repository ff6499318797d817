"""CelebA-HQ 256×256: PNG or JPEG files, LMDB files of raw bytes, or TFRecord files, in one folder or file for each split."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vaebm.config import DATASETS, DatasetFacts, DataSettings
from vaebm.data.convert_large import Pictures
from vaebm.data.decode import Converted, Unsuitable, fitted, read_picture
from vaebm.data.download import checksum, checksums, folder_of
from vaebm.data.lmdb_reader import Database
from vaebm.data.tfrecord import Record, read_image, records
from vaebm.system.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")
SPLITS = {"train": "train", "heldout": "validation"}
"""Split → its folder, or its LMDB without the ending."""


class _Raw(NamedTuple):
    """An image in an LMDB."""

    database: Database
    key: bytes


Item = Path | _Raw | Record


def prepare_celebahq(data: DataSettings, threads: int) -> Pictures:
    """CelebA-HQ in the order of its files' names, keys or records; larger pictures are made smaller (`vaebm.data.decode`).

    Raises:
        UserError: the raw files are not there, damaged, or have another number of pictures than was published.
    """
    folder, facts = folder_of(data), DATASETS[data.dataset]
    parts = {split: _items(folder, name, threads) for split, name in SPLITS.items()}
    for split, expected in {"train": facts.train, "heldout": facts.heldout}.items():
        if len(parts[split][0]) != expected:
            raise UserError(
                f"{folder}: expected {expected:,} images for {SPLITS[split]}, found {len(parts[split][0]):,}; complete it, or use the set folder"
            )
    every = [item for items, _ in parts.values() for item in items]
    source = {SPLITS[split]: found for split, (_, found) in parts.items()}
    splits = {"train": (0, len(parts["train"][0])), "heldout": (len(parts["train"][0]), len(every))}
    shape = (facts.side, facts.side, facts.channels)
    return Pictures(
        shape,
        np.zeros(len(every), np.int64),
        splits,
        source,
        lambda number: _read(every[number], facts),
        lambda number: _name(every[number]),
    )


def _items(folder: Path, name: str, threads: int) -> tuple[list[Item], dict[str, str]]:
    """The images of a split, and what they are with a checksum over all of them."""
    if (database := folder / f"{name}.lmdb").is_dir():
        opened = Database(database)
        keys = sorted((key for key in opened.keys if key.isdigit()), key=int)  # others describe the file
        return [_Raw(opened, key) for key in keys], {"lmdb": checksum(database / "data.mdb", "sha256")}
    files = sorted(path for path in (folder / name).iterdir() if path.is_file())
    of_size = [path for path in files if path.match("*-r08-*.tfrecords")]
    chosen = of_size or [path for path in files if path.suffix.lower() in SUFFIXES]
    sums = "\n".join(checksums(chosen, threads))
    found = {"tfrecords" if of_size else "pictures": hashlib.sha256(sums.encode()).hexdigest()}
    if of_size:
        return [record for path in of_size for record in records(path)], found
    return [*chosen], found


def _read(item: Item, facts: DatasetFacts) -> Converted:
    if isinstance(item, Path):
        with item.open("rb") as file:
            image, done = read_picture(file, facts.channels)
        made, more = fitted(image, facts.side)
        return made, done + more
    shape = (facts.side, facts.side, facts.channels)
    if isinstance(item, Record):
        array = read_image(item)
        if array.shape != shape:
            raise Unsuitable(f"expected an image {shape}, found {array.shape}")
        return array, []
    content = item.database[item.key]
    if len(content) != facts.side * facts.side * facts.channels:
        raise Unsuitable(f"expected {facts.side * facts.side * facts.channels:,} raw RGB bytes, found {len(content):,}")
    return np.frombuffer(content, np.uint8).reshape(shape), []


def _name(item: Item) -> str:
    if isinstance(item, Path):
        return str(item)
    return (
        f"{item.path}: record at byte {item.start - 12:,}"
        if isinstance(item, Record)
        else f"{item.database.folder}: key {item.key.decode()}"
    )
