"""LMDB files that others wrote: read without a lock, which would change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vaebm.system.errors import UserError


class Database:
    """A read-only LMDB.

    Args:
        folder: where its data.mdb stands.

    Raises:
        UserError: there is none, it is damaged, or the package lmdb is not installed.
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
        """The value of a key that is there."""
        with self._environment.begin() as transaction:
            value: bytes = transaction.get(key)
        return value
