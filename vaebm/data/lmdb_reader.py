"""Read-only LMDB files, opened without a lock file."""

from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vaebm.data.raw_kinds import Unsuitable
from vaebm.system.child import reading
from vaebm.system.errors import UserError, brief


class Database:
    """Read-only LMDB in the folder of its data.mdb.

    Raises:
        UserError: the LMDB is absent or damaged.
    """

    def __init__(self, folder: Path):
        import lmdb

        self.folder = folder
        reading(str(folder))
        try:
            self._environment: Any = lmdb.open(str(folder), readonly=True, lock=False, create=False)
            whole = (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]
            size, entries = (folder / "data.mdb").stat().st_size, self._environment.stat()["entries"]
            if size >= whole:  # beyond the end of the file, LMDB would crash
                with self._environment.begin() as transaction:
                    found = transaction.cursor().iternext(keys=True, values=False)
                    self.keys: list[bytes] = list(islice(found, entries + 1))  # damaged pages may lead round
        except Exception as error:  # of a damaged file
            raise UserError(
                f"{folder}: expected an LMDB with its data.mdb, found something unreadable ({brief(error)}); "
                "get it anew"
            ) from None
        if size < whole:
            raise UserError(
                f"{folder / 'data.mdb'}: expected {whole:,} bytes, found {size:,}: it is cut off; get it anew"
            )
        if len(self.keys) != entries:
            raise UserError(
                f"{folder}: expected an LMDB of {entries:,} entries, found {len(self.keys):,}: it is damaged; "
                "get it anew"
            )

    def __getitem__(self, key: bytes) -> bytes:
        """Value of an existing key.

        Raises:
            Unsuitable: the LMDB is damaged there.
        """
        try:
            with self._environment.begin() as transaction:
                value = transaction.get(key)
        except Exception as error:  # of a damaged file
            raise Unsuitable(f"expected an entry of an LMDB, found a damaged one ({brief(error)})") from None
        if value is None:
            raise Unsuitable("expected an entry of an LMDB, found none under its own key: it is damaged")
        return bytes(value)


class Entry(NamedTuple):
    """Entry of an LMDB; as text its name in errors."""

    database: Database
    key: bytes

    def __str__(self) -> str:
        return f"{self.database.folder}: key {self.key.decode(errors='backslashreplace')}"
