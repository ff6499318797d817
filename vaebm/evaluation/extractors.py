"""Extractors: networks whose features measure image quality, registered with torch-fidelity, which runs them.

`classifier` is trained by a rule of the workflow, `inception` is torch-fidelity's InceptionV3, `resnet56` is a
checkpoint of the user, `DINOv2` is the published ViT-L/14.
"""

import os.path
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vaebm.config import EXTRACTORS, ExtractorSettings, weights
from vaebm.config.evaluation import PATHS
from vaebm.config.yaml_files import read_settings
from vaebm.evaluation import resnet56
from vaebm.evaluation.classifier import load_classifier, to_float
from vaebm.evaluation.dinov2 import load_dinov2
from vaebm.measures.bootstrap import Features, Logits
from vaebm.measures.fidelity_backend import torch_fidelity
from vaebm.measures.modes import Labels
from vaebm.records.results import ExtractorRecord
from vaebm.system.checkpoint import load_model, load_plain
from vaebm.system.device import Progress
from vaebm.system.errors import UserError
from vaebm.system.plugins import imported


class _CustomExtractor(torch_fidelity.FeatureExtractorBase):  # type: ignore[misc]
    """torch-fidelity's interface to a network of ours: uint8 images → features and logits."""

    load: Callable[[str], Any]
    """Reads the network of a file."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **kwargs: Any):
        super().__init__(name, features_list)
        self.network = self.load(feature_extractor_weights_path)

    def prepared(self, images: Tensor) -> Tensor:
        """Input of the network for uint8 images (B, …)."""
        return images

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the requested layers, (B, …) each, of images (B, C, H, W)."""
        prepared = self.prepared(images)
        found = {"features": self.network.features(prepared)}
        if "logits" in self.features_list:
            found["logits"] = self.network.logits(found["features"])
        if "labels" in self.features_list:  # of the classifier alone
            found["labels"] = self.network.labels(prepared, found["logits"])
        return tuple(found[layer].reshape(len(images), -1) for layer in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names of the layers."""
        return "features", "logits", "labels"


class ClassifierExtractor(_CustomExtractor):
    """The experiment's classifier; for stacks, features and logits of all channels are concatenated."""

    load = staticmethod(load_classifier)

    def prepared(self, images: Tensor) -> Tensor:
        """All channels of images (B, depth · C, H, W), in [0, 1]: (B · depth, C, H, W)."""
        return to_float(images).reshape(-1, *self.network.shape)


class ResNet56Extractor(_CustomExtractor):
    """CIFAR-10's ResNet-56."""

    load = staticmethod(resnet56.load_resnet56)


class DINOv2Extractor(_CustomExtractor):
    """DINOv2's ViT-L/14, which has no logits."""

    load = staticmethod(load_dinov2)


def _module(settings: ExtractorSettings) -> Any:
    """Class of torch-fidelity's interface for an extractor."""
    found = imported(EXTRACTORS[settings.name].network)
    if isinstance(found, type) and issubclass(found, torch_fidelity.FeatureExtractorBase):
        return found
    return type("PluginExtractor", (_CustomExtractor,), {"load": lambda self, path: found(settings)})


class ExtractorOutput(NamedTuple):
    """Output of an extractor for N images."""

    features: Features
    """(N, D); for stacks and the classifier (N, depth · 64), channels concatenated."""
    logits: Logits
    """(N, depth, classes), depth > 1 only for stacks and the classifier; (N, 0, 0) without classes."""
    labels: Labels | None = None
    """Labels (N, depth, networks) predicted by each network of the classifier; None for other extractors."""


Change = Callable[[Tensor], Tensor]
"""Maps images (B, C, H, W) uint8 to others."""


class _Images(Dataset[Tensor]):
    """Images (N, C, H, W) as the data set that torch-fidelity reads, optionally changed, with a progress bar."""

    def __init__(self, images: Tensor, change: Change | None, progress: Progress):
        self.images, self.change, self.progress = images, change, progress

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Sequence[Tensor]:
        """A batch, of which torch's loader asks at once."""
        self.progress.advance(steps=len(indices))
        images = self.images[indices]
        return (images if self.change is None else self.change(images)).unbind()


def download_weights(extractor: str) -> Path:
    """Path of the published weights of `inception` or `DINOv2` in torch's cache, downloaded on first use.

    Raises:
        UserError: they cannot be fetched.
    """
    published = {
        "inception": (weights.INCEPTION_URL, weights.INCEPTION_SHA256),
        "DINOv2": (weights.DINOV2_URL, weights.DINOV2_SHA256),
    }
    url, sha256 = published[extractor]
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=sys.stderr.isatty())
        except (OSError, HTTPException, RuntimeError) as error:  # no network, an incomplete answer, other bytes
            raise UserError(
                f"{url}: expected the weights of {extractor}, found no way to them ({error}); download it "
                f"elsewhere and name its place as evaluation.{PATHS[extractor]}, or choose evaluation.extractor "
                "and further_extractors among classifier and resnet56"
            ) from None
    return path


@dataclass(frozen=True)
class Extractor:
    """An extractor with its weights, registered with torch-fidelity.

    Attributes:
        kind: name of the extractor.
        weights: for the classifier the hash of its tensors, else the SHA-256 of the file, or of a plug-in and its
            settings.
        path: file of the weights.
        shape: (C, H, W) of its images; (C,) if it takes any size.
        device: device that it runs on.
        networks: number of networks of the classifier.
    """

    kind: str
    weights: str
    path: Path
    shape: tuple[int, ...]
    device: torch.device
    networks: int = 1

    @classmethod
    def of(
        cls, kind: str, path: Path, device: torch.device | str = "cpu", settings: ExtractorSettings | None = None
    ) -> Self:
        """Load the extractor of a file of weights; a plug-in has `settings`, and may have no such file.

        Raises:
            UserError: no such file, or not one of such weights.
        """
        shape: tuple[int, ...]
        networks = 1
        if kind == "classifier":
            content = load_model(path, "classifier")
            found, shape = content["hash"], tuple(content["network"]["shape"])
            networks += content["network"].get("further", 0)
        elif settings is not None and kind in EXTRACTORS.plugins:
            found, shape = weights.plugin_hash(settings), ()
        else:
            path = Path(os.path.expanduser(path))
            found = weights.weights_hash(kind, path, settings.sha256 if settings else None)
            shape = {"inception": (3,), "resnet56": resnet56.SHAPE}.get(kind, ())
            if kind == "inception":  # torch-fidelity unpickles the file without restrictions
                load_plain(path, "the weights of inception")
        extractor = cls(kind, found, path, shape, torch.device(device), networks)
        if extractor.name not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
            settings = settings or ExtractorSettings(name=kind)
            torch_fidelity.register_feature_extractor(extractor.name, _module(settings))
        return extractor

    @property
    def name(self) -> str:
        """The kind and the first digits of the weights' hash."""
        return f"{self.kind}-{self.weights[:12]}"

    def depth(self, shape: tuple[int, ...]) -> int:
        """Number of its images stacked in one of `shape`, (C, H, W); above 1 only for the classifier.

        Raises:
            UserError: it is made for other images.
        """
        if self.kind != "classifier":
            if shape[: len(self.shape)] != self.shape:
                raise UserError(
                    f"{self.path}: {self.kind} is made for images {self.shape}, found {shape}; "
                    "choose another evaluation.extractor"
                )
            return 1
        if shape[0] % self.shape[0] or shape[1:] != self.shape[1:]:
            raise UserError(
                f"{self.path}: expected a classifier of images {shape} or of their channels, "
                f"found one of images {self.shape}"
            )
        return shape[0] // self.shape[0]

    def extract(self, images: Tensor) -> ExtractorOutput:
        """Features, logits and labels of uint8 images (N, C, H, W).

        Raises:
            UserError: it is made for other images.
        """
        features, *classes = self._layers(images, EXTRACTORS[self.kind].layers)
        if not classes:
            return ExtractorOutput(features, np.empty((len(images), 0, 0)))
        rows = len(images), self.depth(tuple(images.shape[1:])), -1
        logits, *labels = (each.reshape(rows) for each in classes)
        return ExtractorOutput(features, logits, labels[0].astype(np.int64) if labels else None)

    def features(self, images: Tensor, change: Change | None = None) -> Features:
        """Features (N, D) of images (N, C, H, W), changed first, without the logits, which may take gigabytes.

        Raises:
            UserError: it is made for other images.
        """
        return self._layers(images, EXTRACTORS[self.kind].layers[:1], change)[0]

    def _layers(self, images: Tensor, layers: Sequence[str], change: Change | None = None) -> list[Features]:
        """Layers of uint8 images (N, C, H, W), each (N, …)."""
        self.depth(tuple(images.shape[1:]))
        cuda, progress = self.device.type == "cuda", Progress(f"{self.kind}'s features", len(images), unit="image")
        module = torch_fidelity.utils.create_feature_extractor(
            self.name, list(layers), cuda=cuda, verbose=False, feature_extractor_weights_path=str(self.path)
        )
        data, batch = _Images(images, change, progress), EXTRACTORS[self.kind].batch
        found = torch_fidelity.utils.get_featuresdict_from_dataset(
            data, module, batch, cuda=cuda, save_cpu_ram=True, verbose=False
        )
        progress.close()
        if not all(found[layer].isfinite().all() for layer in layers):
            raise UserError(f"{self.path}: expected finite features of the images, found NaN or infinity; make it anew")
        return [found[layer].numpy() for layer in layers]

    def describe(self, shape: tuple[int, ...]) -> ExtractorRecord:
        """Facts about the extractor for metrics of images of `shape`, (C, H, W)."""
        facts = {"kind": self.kind, "name": self.name, "weights": self.weights}
        numbers = {"features": self.depth(shape) * EXTRACTORS[self.kind].features, "networks": self.networks}
        return ExtractorRecord.model_validate(facts | numbers | {"torch-fidelity": torch_fidelity.__version__})


def open_extractor(settings: Path, trained: Path | None, device: torch.device | str = "cpu") -> Extractor:
    """Open the extractor of a settings file, reference/<extractor>.yaml; `trained` is the model of the classifier.

    Raises:
        UserError: the file of the weights is missing, not named, one of others, or cannot be fetched.
    """
    chosen = read_settings(settings, ExtractorSettings)[1]
    if chosen.name == "classifier":
        if trained is None:
            raise UserError(f"{settings}: expected the model of the classifier beside it (--classifier), found none")
        return Extractor.of("classifier", trained, device)
    if chosen.name in EXTRACTORS.plugins:
        return Extractor.of(chosen.name, Path(chosen.weights or ""), device, chosen)
    if chosen.weights is None and chosen.name == "resnet56":
        raise UserError(f"{settings}: extractor.weights: expected the path of a file, found none")
    path = download_weights(chosen.name) if chosen.weights is None else Path(chosen.weights)
    extractor = Extractor.of(chosen.name, path, device, chosen)
    if chosen.name == "DINOv2" and extractor.weights not in (weights.DINOV2_SHA256, chosen.sha256):
        expected = f"the published weights, SHA-256 {weights.DINOV2_SHA256[:8]}"
        print(f"warning: {path}: not {expected}; its FD-DINOv2 compares with no published figure", file=sys.stderr)
    return extractor
