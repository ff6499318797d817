"""Read-only LMDB files, opened without a lock file."""

from pathlib import Path
from typing import Any

from vaebm.system.errors import UserError


class Database:
    """Read-only LMDB.

    Args:
        folder: folder of its data.mdb.

    Raises:
        UserError: the LMDB is absent or damaged, or the package lmdb is not installed.
    """

    def __init__(self, folder: Path):
        try:
            import lmdb
        except ModuleNotFoundError:
            raise UserError(
                f"{folder}: an LMDB is read with the package lmdb, which is not installed; pip install lmdb"
            ) from None
        self.folder = folder
        try:
            self._environment: Any = lmdb.open(str(folder), readonly=True, lock=False, create=False)
            with self._environment.begin() as transaction:
                self.keys: list[bytes] = list(transaction.cursor().iternext(keys=True, values=False))
        except lmdb.Error as error:
            raise UserError(
                f"{folder}: expected an LMDB with its data.mdb, found something unreadable ({error}); get it anew"
            ) from None

    def __getitem__(self, key: bytes) -> bytes:
        """Value of an existing key."""
        with self._environment.begin() as transaction:
            return transaction.get(key)
