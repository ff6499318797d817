"""Features of a classifier of our own, and the measures of samples that torch-fidelity computes from them.

A Fréchet distance is named after its extractor (`FD-classifier`); FID is the one in the standard Inception features only.
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
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset
from torch_fidelity.version import __version__ as TORCH_FIDELITY

from vaebm.checkpoint import load_model, writing
from vaebm.config import UserError
from vaebm.data import open_images
from vaebm.evaluation.bootstrap import BLOCK, Features
from vaebm.evaluation.classifier import FEATURES, load_classifier, to_float
from vaebm.frechet import Statistics, frechet_distance

LAYERS = ("features", "logits")
BATCH = 500


class ClassifierExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """torch-fidelity's view of the classifier: uint8 images → their features and logits, of stacks those of all channels side by side."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **kwargs: Any):
        super().__init__(name, features_list)
        self.classifier = load_classifier(feature_extractor_weights_path)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, depth · 64) and logits (B, depth · classes), float64, of images (B, depth · C, H, W)."""
        features = self.classifier.features(to_float(images).reshape(-1, *self.classifier.shape))
        # in double precision, since numpy takes the mean in the precision of the features
        return features.double().reshape(len(images), -1), self.classifier.logits(features).double().reshape(len(images), -1)

    @staticmethod
    def get_provided_features_list() -> tuple[str, str]:
        """The layers that there are."""
        return LAYERS

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The features for distances, the logits for the inception score."""
        return LAYERS[metric == "isc"]

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


class Judged(NamedTuple):
    """What the classifier makes of images."""

    features: Features
    """(N, 64); of stacks those of the channels side by side, (N, depth · 64)."""
    logits: NDArray[np.float64]
    """(N, depth, classes), of each channel of a stack; depth is 1 for other images."""


@dataclass(frozen=True)
class Extractor:
    """The classifier of a file, registered with torch-fidelity under a name that holds its weights' hash.

    Attributes:
        name: of the extractor, "classifier-" and the start of the hash.
        weights: hash of the weights.
        path: the classifier's file.
        shape: (C, H, W) of the images that it judges; those of stacks have a multiple of C channels.
    """

    name: str
    weights: str
    path: Path
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path) -> Extractor:
        """The extractor of a classifier's file.

        Raises:
            UserError: no such file, or not a classifier.
        """
        content = load_model(path, "classifier")
        name = f"classifier-{content['hash'][:12]}"
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(name, ClassifierExtractor)
        return cls(name, content["hash"], path, tuple(content["network"]["shape"]))

    def depth(self, shape: tuple[int, ...]) -> int:
        """How many of the classifier's images are stacked in one of `shape`, (C, H, W).

        Raises:
            UserError: the classifier was made for images that cannot be its channels.
        """
        if shape[0] % self.shape[0] or shape[1:] != self.shape[1:]:
            raise UserError(f"{self.path}: expected a classifier of images {shape} or of their channels, found one of images {self.shape}")
        return shape[0] // self.shape[0]

    def judge(self, images: Tensor) -> Judged:
        """Features and logits of uint8 images (N, C, H, W).

        Raises:
            UserError: the classifier was made for other images.
        """
        depth = self.depth(tuple(images.shape[1:]))
        extractor = create_feature_extractor(self.name, list(LAYERS), cuda=False, verbose=False, feature_extractor_weights_path=str(self.path))
        found = get_featuresdict_from_dataset(_Images(images), extractor, BATCH, cuda=False, save_cpu_ram=True, verbose=False)
        features, logits = (found[layer].numpy() for layer in LAYERS)
        return Judged(features, logits.reshape(len(images), depth, -1))

    def describe(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """What a figure about images of `shape`, (C, H, W), has to say about its extractor."""
        return {"name": self.name, "weights": self.weights, "features": self.depth(shape) * FEATURES, "torch-fidelity": TORCH_FIDELITY}


def kid(a: Features, b: Features, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Kernel distance of features (N, D) and (M, D): mean and standard deviation over random subsets.

    Raises:
        UserError: a subset is larger than one of the two samples.
    """
    if size > min(len(a), len(b)):
        raise UserError(f"evaluation: kid_subset_size: expected at most {min(len(a), len(b))}, the images there are, found {size}")
    found = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), kid_subsets=subsets, kid_subset_size=size, rng_seed=seed % 2**32, verbose=False)
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


def inception_score(logits: NDArray[np.float64], splits: int) -> tuple[float, float]:
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
    found = prc_features_to_metric(
        torch.from_numpy(samples), torch.from_numpy(real), prc_neighborhood=neighbours, prc_batch_size=BLOCK, save_cpu_ram=True, verbose=False
    )
    # torch-fidelity takes the means in single precision
    return round(found[KEY_METRIC_PRECISION] * len(samples)) / len(samples), round(found[KEY_METRIC_RECALL] * len(real)) / len(real)


class Reference(NamedTuple):
    """What samples are compared with: features of the training images, statistics of both splits."""

    train_features: Features
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
    features = {split: extractor.judge(images.split(split)[0]).features for split in ("train", "heldout")}
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
