"""Check of the published weights of extractors, without torch, before anything starts."""

import hashlib
import os.path
from pathlib import Path

from vaebm.config.base import fingerprint
from vaebm.config.evaluation import PATHS, ExtractorSettings
from vaebm.system.errors import UserError

INCEPTION_SHA256 = "6726825d"
"""First digits of the SHA-256 of the standard Inception weights, which torch-fidelity converted from TensorFlow."""

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)

DINOV2_SHA256 = "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"
"""SHA-256 of the published weights of DINOv2's ViT-L/14, 1,217,586,395 bytes."""

DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"


def weights_hash(extractor: str, path: Path | str, stated: str | None = None) -> str:
    """SHA-256 of an extractor's weights file; `~` is expanded.

    Args:
        stated: expected SHA-256; None: any, but that of the standard weights for Inception.

    Raises:
        UserError: the file does not exist, or is not the expected one.
    """
    file = Path(os.path.expanduser(path))
    expected = f"the weights of {extractor}"
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: expected {expected}, found {getattr(error, 'strerror', None) or error}; "
            f"evaluation.{PATHS.get(extractor, 'extractor.weights')} names the file"
        ) from None
    if extractor == "inception" and not found.startswith(INCEPTION_SHA256):
        raise UserError(
            f"{file}: expected {expected}, whose SHA-256 begins {INCEPTION_SHA256}, found {found[:8]}; "
            f"the file is at {INCEPTION_URL}"
        )
    if stated not in (None, found):
        advice = "bring that file, or state the SHA-256 of this one"
        raise UserError(f"{file}: expected {expected} with SHA-256 {stated}, found {found}; {advice}")
    return found


def plugin_hash(settings: ExtractorSettings) -> str:
    """Hash of the settings, version and weights of a plug-in's extractor.

    Raises:
        UserError: the weights file does not exist.
    """
    weights = settings.weights and weights_hash(settings.name, settings.weights, settings.sha256)
    return fingerprint({**settings.model_dump(), "weights": weights})
