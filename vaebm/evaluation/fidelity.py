"""Fréchet distance and KID in the features of a classifier of our own, computed by torch-fidelity.

Such a distance is named after its extractor (`FD-classifier`); FID is the one in the standard Inception features only.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

import vaebm.torchvision_operators  # noqa: F401  before torch-fidelity, which imports torchvision

# isort: split
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset
from torch_fidelity.version import __version__ as TORCH_FIDELITY

from vaebm.checkpoint import load_model, writing
from vaebm.config import UserError
from vaebm.data import open_images
from vaebm.evaluation.classifier import FEATURES, load_classifier, to_float
from vaebm.frechet import Statistics as Statistics
from vaebm.frechet import frechet_distance as frechet_distance

LAYER = "features"
BATCH = 500


class ClassifierExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """torch-fidelity's view of the classifier: uint8 images (B, C, H, W) → a tuple with features (B, 64) float64."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **kwargs: Any):
        super().__init__(name, features_list)
        self.classifier = load_classifier(feature_extractor_weights_path)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """The features of a batch."""
        # in double precision, since numpy takes the mean in the precision of the features
        return (self.classifier.features(to_float(images)).double(),)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        """The one layer that there is."""
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The same layer for every metric."""
        return LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        """No: compiling takes longer than all that there is to do."""
        return False


class _Images(Dataset[Tensor]):
    """Tensors (N, C, H, W) as the data set that torch-fidelity reads."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@dataclass(frozen=True)
class Extractor:
    """The classifier of a file, registered with torch-fidelity under a name that holds its weights' hash.

    Attributes:
        name: of the extractor, "classifier-" and the start of the hash.
        weights: hash of the weights.
        path: the classifier's file.
    """

    name: str
    weights: str
    path: Path

    @classmethod
    def of(cls, path: Path) -> Extractor:
        """The extractor of a classifier's file.

        Raises:
            UserError: no such file, or not a classifier.
        """
        weights = load_model(path, "classifier")["hash"]
        name = f"classifier-{weights[:12]}"
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(name, ClassifierExtractor)
        return cls(name, weights, path)

    def features(self, images: Tensor) -> NDArray[np.float64]:
        """Features (N, 64) of uint8 images (N, C, H, W)."""
        extractor = create_feature_extractor(self.name, [LAYER], cuda=False, verbose=False, feature_extractor_weights_path=str(self.path))
        found = get_featuresdict_from_dataset(_Images(images), extractor, BATCH, cuda=False, save_cpu_ram=True, verbose=False)
        features: NDArray[np.float64] = found[LAYER].numpy()
        return features

    def describe(self) -> dict[str, Any]:
        """What a figure has to say about its extractor."""
        return {"name": self.name, "weights": self.weights, "features": FEATURES, "torch-fidelity": TORCH_FIDELITY}


def kid(a: NDArray[np.float64], b: NDArray[np.float64], subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Kernel distance of features (N, D) and (M, D): mean and standard deviation over random subsets.

    Raises:
        UserError: a subset is larger than one of the two samples.
    """
    if size > min(len(a), len(b)):
        raise UserError(f"evaluation: kid_subset_size: expected at most {min(len(a), len(b))}, the images there are, found {size}")
    found = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), kid_subsets=subsets, kid_subset_size=size, rng_seed=seed % 2**32, verbose=False)
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


class Reference(NamedTuple):
    """What samples are compared with: features of the training images, statistics of both splits."""

    train_features: NDArray[np.float64]
    train: Statistics
    heldout: Statistics
    real: float
    """Fréchet distance of held-out to training images: what real images score."""


def reference(data: Path, classifier: Path, output: Path) -> None:
    """Write the reference of a data set as .npz: features, means and covariances of its training and held-out images.

    Args:
        data: manifest of the images.
        classifier: file of the classifier.
        output: file to write; it also holds the hashes of data and weights, and what real images score.

    Raises:
        UserError: bad data or classifier.
    """
    images, extractor = open_images(data), Extractor.of(classifier)
    features = {split: extractor.features(images.split(split)[0]) for split in ("train", "heldout")}
    statistics = {split: Statistics.of(found) for split, found in features.items()}
    content: dict[str, NDArray[Any]] = {
        "data": np.array(images.hash),
        "weights": np.array(extractor.weights),
        "real": np.array(frechet_distance(statistics["heldout"], statistics["train"])),
    }
    for split in features:
        content |= {f"{split}_features": features[split], f"{split}_mean": statistics[split].mean, f"{split}_covariance": statistics[split].covariance}
    with writing(output) as stream:
        np.savez(stream, allow_pickle=False, **content)


def read_reference(path: Path, data: str, weights: str) -> Reference:
    """The reference that `reference` wrote.

    Args:
        data: hash of the data set that it must have been made from.
        weights: hash of the classifier's weights that it must have been made with.

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
