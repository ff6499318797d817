"""Check of the published weights of extractors, without torch, before anything starts."""

import hashlib
import os.path
from pathlib import Path

from vaebm.config.base import fingerprint
from vaebm.config.evaluation import NOT_TRAINED, ExtractorSettings
from vaebm.system.errors import UserError

INCEPTION_SHA256 = "6726825d"
"""First digits of the SHA-256 of the standard Inception weights, which torch-fidelity converted from TensorFlow."""

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


def weights_hash(extractor: str, path: Path | str) -> str:
    """SHA-256 of an extractor's weights file; `~` is expanded.

    Raises:
        UserError: the file does not exist, or is not the file of the standard Inception weights.
    """
    file = Path(os.path.expanduser(path))
    expected = f"the weights of {extractor}"
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: expected {expected}, found {getattr(error, 'strerror', None) or error}; "
            f"evaluation.{f'{extractor}_weights' if extractor in NOT_TRAINED else 'extractor.weights'} names the file"
        ) from None
    if extractor == "inception" and not found.startswith(INCEPTION_SHA256):
        raise UserError(
            f"{file}: expected {expected}, whose SHA-256 begins {INCEPTION_SHA256}, found {found[:8]}; "
            f"the file is at {INCEPTION_URL}"
        )
    return found


def plugin_hash(settings: ExtractorSettings) -> str:
    """Hash of the settings, version and weights of a plug-in's extractor.

    Raises:
        UserError: the weights file does not exist.
    """
    weights = settings.weights and weights_hash(settings.name, settings.weights)
    return fingerprint({**settings.model_dump(), "weights": weights})
