"""LSUN Church Outdoor 64×64: encoded pictures in two LMDB files, made smaller and cut to squares.

The published experiments cut a random square out of each training image whenever it is seen, and the centre out of others; one
prepared image is kept here for each, the centre.
"""

from __future__ import annotations

import io

import numpy as np

from vaebm.config import DATASETS, DataSettings
from vaebm.data.convert_large import Pictures
from vaebm.data.decode import Converted, fitted, read_picture
from vaebm.data.download import checksum, folder_of
from vaebm.data.lmdb_reader import Database
from vaebm.system.errors import UserError

FOLDERS = {"train": "church_outdoor_train_lmdb", "heldout": "church_outdoor_val_lmdb"}


def prepare_lsun(data: DataSettings) -> Pictures:
    """The churches in the order of their keys.

    Raises:
        UserError: the raw files are not there, damaged, or have another number of pictures than was published.
    """
    folder, facts = folder_of(data), DATASETS[data.dataset]
    parts = {split: Database(folder / name) for split, name in FOLDERS.items()}
    for (split, database), expected in zip(parts.items(), (facts.train, facts.heldout), strict=True):
        if len(database.keys) != expected:
            raise UserError(
                f"{database.folder}: expected {expected:,} pictures ({split}), found {len(database.keys):,}; get it anew"
            )
    train = len(parts["train"].keys)
    every = [(database, key) for database in parts.values() for key in database.keys]

    def read(number: int) -> Converted:
        database, key = every[number]
        image, done = read_picture(io.BytesIO(database[key]), channels=3)
        made, more = fitted(image, facts.side)
        return made, done + more

    def name(number: int) -> str:
        database, key = every[number]
        return f"{database.folder}: {key.decode(errors='backslashreplace')}"

    source = {
        f"{name}/data.mdb": {"sha256": checksum(folder / name / "data.mdb", "sha256")} for name in FOLDERS.values()
    }
    shape = (facts.side, facts.side, facts.channels)
    return Pictures(
        shape, np.zeros(len(every), np.int64), {"train": (0, train), "heldout": (train, len(every))}, source, read, name
    )
