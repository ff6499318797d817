"""Atomic writing of files, without torch, which takes seconds to load."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vaebm.system.errors import UserError

MODEL, EARLIER_MODEL = "model.safetensors", "model.pt"
"""Name of the model in the folder of a training, now and in earlier versions."""


def model_of(folder: Path) -> Path:
    """Model file in the folder of a training, under its earlier name if there is no other."""
    earlier = folder / EARLIER_MODEL
    return earlier if earlier.is_file() and not (folder / MODEL).is_file() else folder / MODEL


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Binary stream whose content replaces `path` atomically: temporary name, sync, rename.

    Raises:
        UserError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed process
            left.unlink(missing_ok=True)
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}; choose another place, or make room there"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, atomically."""
    with writing(path) as stream:
        stream.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
