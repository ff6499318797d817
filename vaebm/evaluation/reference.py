"""Reference statistics of a data set in an extractor's features."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vaebm.data import open_images
from vaebm.evaluation.extractors import open_extractor
from vaebm.measures.bootstrap import Features
from vaebm.measures.frechet import Statistics, frechet_distance
from vaebm.system.errors import UserError
from vaebm.system.files import warn_unverified, writing


class Reference(NamedTuple):
    """Features of the training images, and statistics of both splits."""

    train_features: Features
    """Features (N, D) of the training images."""
    train: Statistics
    """Mean and covariance of the training images' features."""
    heldout: Statistics
    """Those of the held-out images' features."""
    real: float
    """Fréchet distance between held-out and training images."""
    heldout_features: Features
    """Features (M, D) of the held-out images; none in the file of an earlier version."""


def _hash(content: dict[str, NDArray[Any]]) -> str:
    """SHA-256 of names, types, shapes and values, of all but `hash`."""
    digest = hashlib.sha256()
    for name, array in sorted(content.items()):
        if name != "hash":
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


def write_reference(
    settings: Path, data: Path, classifier: Path | None, output: Path, device: torch.device | str = "cpu"
) -> None:
    """Write the reference of a data set as .npz, with the hashes of data, weights and its own content.

    Raises:
        UserError: bad data, or bad weights.
    """
    extractor, images = open_extractor(settings, classifier, device), open_images(data)
    features = {split: extractor.features(images.split(split)[0]) for split in ("train", "heldout")}
    statistics = {split: Statistics.of(found) for split, found in features.items()}
    content: dict[str, NDArray[Any]] = {
        "data": np.array(images.hash),
        "weights": np.array(extractor.weights),
        "real": np.array(frechet_distance(statistics["heldout"], statistics["train"])),
        "train_features": features["train"],
        "heldout_features": features["heldout"],
    }
    for split, found in statistics.items():
        content |= {f"{split}_mean": found.mean, f"{split}_covariance": found.covariance}
    with writing(output) as stream:
        np.savez(stream, allow_pickle=False, hash=np.array(_hash(content)), **content)


def read_reference(path: Path, data: str, weights: str) -> Reference:
    """Read the output of `write_reference` for the data set and the extractor's weights with these hashes.

    Raises:
        UserError: no such file, no reference, or one of other data or weights.
    """
    try:
        # an open stream: numpy does not close a damaged file that it opened itself
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
        found = Reference(
            content["train_features"],
            Statistics(content["train_mean"], content["train_covariance"]),
            Statistics(content["heldout_mean"], content["heldout_covariance"]),
            float(content["real"]),
            content.get("heldout_features", content["train_features"][:0]),
        )
        hashes = {"data": str(content["data"]), "weights": str(content["weights"])}
        if "hash" in content and str(content["hash"]) != _hash(content):
            raise ValueError("other values than those that were written")
    except FileNotFoundError:
        raise UserError(
            f"{path}: expected the reference statistics, found no file; `vaebm reference` makes it"
        ) from None
    except Exception:  # NumPy and zipfile raise many classes
        raise UserError(
            f"{path}: expected reference statistics, found a damaged file or one of another kind; "
            "remove it and make it again"
        ) from None
    if "hash" not in content:
        warn_unverified(path, "remove it and make it again to have one")
    for name, expected in (("data", data), ("weights", weights)):
        if hashes[name] != expected:
            raise UserError(
                f"{path}: expected statistics of {name} {expected[:12]}, found those of {hashes[name][:12]}; "
                "remove it and make it again"
            )
    return found
