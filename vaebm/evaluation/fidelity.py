"""The measures of samples that torch-fidelity computes from an extractor's features, and what the samples are compared with."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import vaebm.system.torchvision_shim  # noqa: F401  before torch-fidelity, which imports torchvision

# isort: split
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from vaebm.data import open_images
from vaebm.evaluation.extractors import open_extractor
from vaebm.measures.bootstrap import BLOCK, Features, Logits
from vaebm.measures.frechet import Statistics, frechet_distance
from vaebm.system.errors import UserError
from vaebm.system.files import writing


def kid(a: Features, b: Features, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Kernel distance of features (N, D) and (M, D): mean and standard deviation over random subsets.

    Raises:
        UserError: a subset is larger than one of the two samples.
    """
    if size > min(len(a), len(b)):
        raise UserError(f"evaluation: kid_subset_size: expected at most {min(len(a), len(b))}, the images there are, found {size}")
    random, found = np.random.default_rng(seed), []
    for _ in range(subsets):
        # each as a whole set of its own, since torch-fidelity sums in the features' precision and all of them in double take gigabytes
        drawn = [torch.from_numpy(features[random.permutation(len(features))[:size]].astype(np.float64)) for features in (a, b)]
        found.append(kid_features_to_metric(*drawn, kid_subsets=1, kid_subset_size=size, verbose=False)[KEY_METRIC_KID_MEAN])
    return float(np.mean(found)), float(np.std(found))


def inception_score(logits: Logits, splits: int) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) for logits (N, classes): mean and standard deviation over consecutive parts (Salimans et al., 2016)."""
    found = isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=False)
    return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]


def precision_recall(samples: Features, real: Features, neighbours: int) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019, eq. 1 and 2) of features (N, D) and (M, D).

    Precision is the share of samples in a ball around some real image that reaches to that image's k-th nearest real neighbour;
    recall is the share of real images in such a ball around some sample.

    Raises:
        UserError: not more images than neighbours.
    """
    if neighbours >= min(len(samples), len(real)):
        raise UserError(
            f"evaluation: precision_recall: neighbours: expected less than {min(len(samples), len(real))}, the images there are, found {neighbours}"
        )
    # in double precision: torch takes distances of many features from their products, which in single precision loses the small ones
    pair = (torch.from_numpy(features.astype(np.float64)) for features in (samples, real))
    found = prc_features_to_metric(*pair, prc_neighborhood=neighbours, prc_batch_size=BLOCK, save_cpu_ram=True, verbose=False)
    # torch-fidelity takes the means in single precision
    return round(found[KEY_METRIC_PRECISION] * len(samples)) / len(samples), round(found[KEY_METRIC_RECALL] * len(real)) / len(real)


class Reference(NamedTuple):
    """What samples are compared with: features of the training images, statistics of both splits."""

    train_features: Features
    train: Statistics
    heldout: Statistics
    real: float
    """Fréchet distance of held-out to training images: what real images score."""


def reference(settings: Path, data: Path, classifier: Path | None, output: Path, device: torch.device | str = "cpu") -> None:
    """Write the reference of a data set as .npz: features of its training images, means and covariances of them and of the held-out ones.

    Args:
        settings: of the extractor.
        data: manifest of the images.
        classifier: model of the classifier, where that is the extractor.
        output: file to write; it also holds the hashes of data and weights, and what real images score.
        device: that the extractor runs on.

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
    }
    for split, found in statistics.items():
        content |= {f"{split}_mean": found.mean, f"{split}_covariance": found.covariance}
    with writing(output) as stream:
        np.savez(stream, allow_pickle=False, **content)


def read_reference(path: Path, data: str, weights: str) -> Reference:
    """The reference that `reference` wrote.

    Args:
        data: hash of the data set that it must have been made from.
        weights: hash of the extractor's weights that it must have been made with.

    Raises:
        UserError: no such file, no reference, or one of other data or weights.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:  # numpy leaves a damaged file open that it opened itself
            content = {name: file[name] for name in file.files}
        found = Reference(
            content["train_features"],
            Statistics(content["train_mean"], content["train_covariance"]),
            Statistics(content["heldout_mean"], content["heldout_covariance"]),
            float(content["real"]),
        )
        hashes = {"data": str(content["data"]), "weights": str(content["weights"])}
    except FileNotFoundError:
        raise UserError(f"{path}: expected the reference statistics, found no file; `vaebm reference` makes it") from None
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile):
        raise UserError(f"{path}: expected reference statistics, found a damaged file or one of another kind; remove it and make it again") from None
    for name, expected in (("data", data), ("weights", weights)):
        if hashes[name] != expected:
            raise UserError(f"{path}: expected statistics of {name} {expected[:12]}, found those of {hashes[name][:12]}; remove it and make it again")
    return found
