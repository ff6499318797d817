"""Extractors: networks whose features measure image quality, each registered with torch-fidelity, which runs them.

`classifier` is trained on the images by its own rule, `inception` is torch-fidelity's InceptionV3, `resnet56` a checkpoint of the user's.
"""

from __future__ import annotations

import os.path
import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vaebm.config import ExtractorSettings, weights
from vaebm.config.weights import INCEPTION_URL
from vaebm.config.yaml_files import read_settings
from vaebm.evaluation import classifier, resnet56
from vaebm.evaluation.classifier import load_classifier, to_float
from vaebm.evaluation.resnet56 import load_resnet56
from vaebm.measures.bootstrap import Features, Logits
from vaebm.measures.fidelity_backend import (
    FEATURE_EXTRACTORS_REGISTRY,
    TORCH_FIDELITY,
    FeatureExtractorBase,
    FeatureExtractorInceptionV3,
    create_feature_extractor,
    get_featuresdict_from_dataset,
    register_feature_extractor,
)
from vaebm.system.checkpoint import load_model, load_plain
from vaebm.system.device import Progress
from vaebm.system.errors import UserError


class _Own(FeatureExtractorBase):  # type: ignore[misc]
    """torch-fidelity's view of a network that it does not bring along: uint8 images → features and logits."""

    LAYERS = ("features", "logits")

    @abstractmethod
    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, …) and logits (B, …) of images (B, C, H, W)."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The layers that were asked for."""
        found = dict(zip(self.LAYERS, self.both(images), strict=True))
        return tuple(found[layer] for layer in self.features_list)

    @classmethod
    def get_provided_features_list(cls) -> tuple[str, str]:
        """The layers that there are."""
        return cls.LAYERS

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric: str) -> str:
        """The features for distances, the logits for the inception score."""
        return cls.LAYERS[metric == "isc"]

    @staticmethod
    def can_be_compiled() -> bool:
        """No: compiling takes longer than all that there is to do."""
        return False


class ClassifierExtractor(_Own):
    """The classifier that the experiment trains; of stacks the features and logits of all channels side by side."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **kwargs: Any):
        super().__init__(name, features_list)
        self.network = load_classifier(feature_extractor_weights_path)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, depth · 64) and logits (B, depth · classes) of images (B, depth · C, H, W)."""
        features = self.network.features(to_float(images).reshape(-1, *self.network.shape))
        return features.reshape(len(images), -1), self.network.logits(features).reshape(len(images), -1)


class ResNet56Extractor(_Own):
    """CIFAR-10's ResNet-56 of a checkpoint."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **kwargs: Any):
        super().__init__(name, features_list)
        self.network = load_resnet56(feature_extractor_weights_path)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 64) and logits (B, 10) of images (B, 3, 32, 32)."""
        features = self.network.features(images)
        return features, self.network.logits(features)


class Kind(NamedTuple):
    """What is known of an extractor before its weights are read."""

    module: type[FeatureExtractorBase]
    layers: tuple[str, str]
    """torch-fidelity's names of the features and of the logits."""
    features: int
    """D, of one image, of a stack of one of its channels."""
    batch: int
    """Images at once; fixed, since the last bits of a figure may depend on it."""


KINDS = {
    "classifier": Kind(ClassifierExtractor, _Own.LAYERS, classifier.FEATURES, 500),
    "resnet56": Kind(ResNet56Extractor, _Own.LAYERS, resnet56.FEATURES, 500),
    # the layers that FID, KID and the inception score are defined on
    "inception": Kind(FeatureExtractorInceptionV3, ("2048", "logits_unbiased"), 2048, 50),
}


class Judged(NamedTuple):
    """What an extractor makes of images."""

    features: Features
    """(N, D); of stacks and the classifier those of the channels side by side, (N, depth · 64)."""
    logits: Logits
    """(N, depth, classes): of each channel of a stack with the classifier; in all other cases depth is 1."""


Change = Callable[[Tensor], Tensor]
"""Makes an image (C, H, W) uint8 of another one."""


class _Images(Dataset[Tensor]):
    """Tensors (N, C, H, W) as the data set that torch-fidelity reads, one image after the other, changed or not, and tells how far it is."""

    def __init__(self, images: Tensor, change: Change | None, progress: Progress):
        self.images, self.change, self.progress = images, change, progress

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        self.progress.advance()
        return self.images[index] if self.change is None else self.change(self.images[index])


def downloaded() -> Path:
    """The file with Inception's standard weights in torch's own cache, fetched from where torch-fidelity offers it unless it is there.

    Raises:
        UserError: it cannot be fetched.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", INCEPTION_URL.rpartition("/")[2])
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                INCEPTION_URL, str(path), hash_prefix=weights.INCEPTION_SHA256, progress=sys.stderr.isatty()
            )
        except (OSError, HTTPException, RuntimeError) as error:  # no network, half an answer, other bytes
            ways = "download it elsewhere and name its place as evaluation.inception_weights, or choose evaluation.extractor classifier or resnet56"
            raise UserError(
                f"{INCEPTION_URL}: expected the weights of inception, found no way to them ({error}); {ways}"
            ) from None
    return path


@dataclass(frozen=True)
class Extractor:
    """An extractor with its weights, registered with torch-fidelity under a name that holds their hash.

    Attributes:
        kind: key of `KINDS`.
        weights: of the classifier hash of the tensors, of the others SHA-256 of the file.
        path: the file of the weights.
        shape: (C, H, W) of the images that it judges; (C,) where they may have any size.
        device: what it runs on.
    """

    kind: str
    weights: str
    path: Path
    shape: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, kind: str, path: Path, device: torch.device | str = "cpu") -> Extractor:
        """The extractor of a file of weights.

        Raises:
            UserError: no such file, or not one of such weights.
        """
        shape: tuple[int, ...]
        if kind == "classifier":
            content = load_model(path, "classifier")
            found, shape = content["hash"], tuple(content["network"]["shape"])
        else:
            path = Path(os.path.expanduser(path))
            found, shape = weights.weights_hash(kind, path), resnet56.SHAPE if kind == "resnet56" else (3,)
            if (
                kind == "inception"
            ):  # torch-fidelity would run what else stands in the file; the start of a hash can be forged
                load_plain(path, "the weights of inception")
        extractor = cls(kind, found, path, shape, torch.device(device))
        if extractor.name not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(extractor.name, KINDS[kind].module)
        return extractor

    @property
    def name(self) -> str:
        """The kind and the start of the weights' hash."""
        return f"{self.kind}-{self.weights[:12]}"

    def depth(self, shape: tuple[int, ...]) -> int:
        """How many of its images are stacked in one of `shape`, (C, H, W); only the classifier judges stacks.

        Raises:
            UserError: it is made for other images.
        """
        if self.kind != "classifier":
            if shape[: len(self.shape)] != self.shape:
                raise UserError(
                    f"{self.path}: {self.kind} is made for images {self.shape}, found {shape}; choose another evaluation.extractor"
                )
            return 1
        if shape[0] % self.shape[0] or shape[1:] != self.shape[1:]:
            raise UserError(
                f"{self.path}: expected a classifier of images {shape} or of their channels, found one of images {self.shape}"
            )
        return shape[0] // self.shape[0]

    def judge(self, images: Tensor) -> Judged:
        """Features and logits of uint8 images (N, C, H, W).

        Raises:
            UserError: it is made for other images.
        """
        features, logits = self._layers(images, KINDS[self.kind].layers)
        return Judged(features, logits.reshape(len(images), self.depth(tuple(images.shape[1:])), -1))

    def features(self, images: Tensor, change: Change | None = None) -> Features:
        """The features alone, (N, D), of images (N, C, H, W), each changed before: the logits of a large set are gigabytes that nothing asks for.

        Raises:
            UserError: it is made for other images.
        """
        return self._layers(images, KINDS[self.kind].layers[:1], change)[0]

    def _layers(self, images: Tensor, layers: Sequence[str], change: Change | None = None) -> list[Features]:
        """Some layers of uint8 images (N, C, H, W), each (N, …)."""
        self.depth(tuple(images.shape[1:]))
        cuda, progress = self.device.type == "cuda", Progress(f"{self.kind}'s features", len(images), unit="image")
        module = create_feature_extractor(
            self.name, list(layers), cuda=cuda, verbose=False, feature_extractor_weights_path=str(self.path)
        )
        found = get_featuresdict_from_dataset(
            _Images(images, change, progress),
            module,
            KINDS[self.kind].batch,
            cuda=cuda,
            save_cpu_ram=True,
            verbose=False,
        )
        progress.close()
        return [found[layer].numpy() for layer in layers]

    def describe(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """What a figure about images of `shape`, (C, H, W), has to say about its extractor."""
        features = self.depth(shape) * KINDS[self.kind].features
        return {
            "kind": self.kind,
            "name": self.name,
            "weights": self.weights,
            "features": features,
            "torch-fidelity": TORCH_FIDELITY,
        }


def open_extractor(settings: Path, trained: Path | None, device: torch.device | str = "cpu") -> Extractor:
    """The extractor that a settings file names.

    Args:
        settings: reference/<extractor>.yaml, as `config.yaml_files.write_settings` wrote it.
        trained: model of the classifier; None: not given.

    Raises:
        UserError: the file of the weights is missing, not named, one of others, or cannot be fetched.
    """
    chosen = read_settings(settings, ExtractorSettings)[1]
    if chosen.name == "classifier":
        if trained is None:
            raise UserError(f"{settings}: expected the model of the classifier beside it (--classifier), found none")
        return Extractor.of("classifier", trained, device)
    if chosen.weights is None and chosen.name != "inception":
        raise UserError(f"{settings}: extractor.weights: expected the path of a file, found none")
    return Extractor.of(chosen.name, downloaded() if chosen.weights is None else Path(chosen.weights), device)
