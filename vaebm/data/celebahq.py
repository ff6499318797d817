"""CelebA-HQ 256×256: PNG or JPEG files, LMDB files of raw bytes, or TFRecord files; a folder or file per split."""

import hashlib
import math
from pathlib import Path

import numpy as np

from vaebm.config import DatasetFacts, DataSettings
from vaebm.data.convert_large import LazyImages
from vaebm.data.decode import Decoded, Unsuitable, read_resized
from vaebm.data.download import checksums, folder_of
from vaebm.data.lmdb_reader import Database, Entry
from vaebm.data.tfrecord import TFRecord, read_image, records
from vaebm.system.errors import UserError
from vaebm.system.files import checksum

_SUFFIXES = (".png", ".jpg", ".jpeg")
SOURCES = {"train": "train", "heldout": "validation"}
"""Split → name of its folder, or of its LMDB without the suffix."""

Item = Path | Entry | TFRecord


def prepare_celebahq(data: DataSettings, threads: int) -> LazyImages:
    """CelebA-HQ in the order of file names, keys or records; larger pictures are resized (`vaebm.data.decode`)."""
    folder, facts, items, source = folder_of(data), data.facts, {}, {}
    for (split, name), expected in zip(SOURCES.items(), (facts.train, facts.heldout), strict=True):
        items[split], source[name] = _items(folder, name, threads)
        if (found := len(items[split])) != expected:
            raise UserError(
                f"{folder}: expected {expected:,} images for {name}, found {found:,}; "
                "complete it, or use the set folder"
            )
    return LazyImages((facts.side, facts.side, facts.channels), items, source, lambda item: _read(item, facts))


def _items(folder: Path, name: str, threads: int) -> tuple[list[Item], dict[str, str]]:
    """Images of a split, and kind of the files → checksum over all of them."""
    if (database := folder / f"{name}.lmdb").is_dir():
        opened = Database(database)
        keys = sorted((key for key in opened.keys if key.isdigit()), key=int)  # other keys are metadata
        return [Entry(opened, key) for key in keys], {"lmdb": checksum(database / "data.mdb")}
    try:  # hidden files are of file managers
        files = sorted(path for path in (folder / name).iterdir() if path.is_file() and path.name[0] != ".")
    except OSError as error:
        raise UserError(
            f"{folder / name}: expected a folder of pictures or TFRecords, or {name}.lmdb, "
            f"found {'none' if isinstance(error, FileNotFoundError) else error.strerror}; complete {folder}"
        ) from None
    of_size = [path for path in files if path.match("*-r08-*.tfrecords")]
    chosen = of_size or [path for path in files if path.suffix.lower() in _SUFFIXES]
    sums = "\n".join(checksums(chosen, threads))
    found = {"tfrecords" if of_size else "pictures": hashlib.sha256(sums.encode()).hexdigest()}
    if of_size:
        return [record for path in of_size for record in records(path)], found
    return [*chosen], found


def _read(item: Item, facts: DatasetFacts) -> Decoded:
    """Image of an item."""
    if isinstance(item, Path):
        with item.open("rb") as file:
            return read_resized(file, facts.channels, facts.side)
    shape = (facts.side, facts.side, facts.channels)
    if isinstance(item, TFRecord):
        array = read_image(item)
        if array.shape != shape:
            raise Unsuitable(f"expected an image {shape}, found {array.shape}")
        return array, []
    content = item.database[item.key]
    if len(content) != (size := math.prod(shape)):
        raise Unsuitable(f"expected {size:,} raw RGB bytes, found {len(content):,}")
    return np.frombuffer(content, np.uint8).reshape(shape), []
