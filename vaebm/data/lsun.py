"""LSUN Church Outdoor 64×64: encoded pictures in two LMDB files, resized and cropped to the centre.

The published experiments crop training images at random; here every image is cropped to the centre, once.
"""

import io

from vaebm.config import DataSettings
from vaebm.data.convert_large import LazyImages
from vaebm.data.decode import Decoded, read_resized
from vaebm.data.download import folder_of
from vaebm.data.lmdb_reader import Database, Entry
from vaebm.system.errors import UserError
from vaebm.system.files import checksum

FOLDERS = {"train": "church_outdoor_train_lmdb", "heldout": "church_outdoor_val_lmdb"}


def prepare_lsun(data: DataSettings, threads: int) -> LazyImages:
    """LSUN Church Outdoor in the order of the keys."""
    folder, facts, entries, source = folder_of(data), data.facts, {}, {}
    for (split, name), expected in zip(FOLDERS.items(), (facts.train, facts.heldout), strict=True):
        database = Database(folder / name)
        if len(database.keys) != expected:
            raise UserError(
                f"{database.folder}: expected {expected:,} pictures ({split}), "
                f"found {len(database.keys):,}; get it anew"
            )
        entries[split] = [Entry(database, key) for key in database.keys]
        source[f"{name}/data.mdb"] = {"sha256": checksum(folder / name / "data.mdb")}

    def read(entry: Entry) -> Decoded:
        return read_resized(io.BytesIO(entry.database[entry.key]), facts.channels, facts.side)

    return LazyImages((facts.side, facts.side, facts.channels), entries, source, read)
