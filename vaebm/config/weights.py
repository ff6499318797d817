"""The weights of extractors that this project does not train: whether their file is there and the right one.

Nothing here imports torch: Snakemake asks before anything starts.
"""

from __future__ import annotations

import hashlib
import os.path
from pathlib import Path

from vaebm.system.errors import UserError

INCEPTION_SHA256 = "6726825d"
"""How the SHA-256 of the standard Inception weights begins; torch-fidelity made the file from the published TensorFlow ones."""

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


def weights_hash(extractor: str, path: Path | str) -> str:
    """SHA-256 of an extractor's file of weights, seen from the project's folder; `~` is the user's.

    Raises:
        UserError: there is no such file, or it is not the one with Inception's standard weights.
    """
    file = Path(os.path.expanduser(path))
    expected = f"the weights of {extractor}"
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{file}: expected {expected}, found {error.strerror or error}; evaluation.{extractor}_weights names the file"
        ) from None
    if extractor == "inception" and not found.startswith(INCEPTION_SHA256):
        raise UserError(
            f"{file}: expected {expected}, whose SHA-256 begins {INCEPTION_SHA256}, found {found[:8]}; the file is at {INCEPTION_URL}"
        )
    return found
