"""Extractors: networks whose features measure image quality, registered with torch-fidelity, which runs them.

`classifier` is trained by a rule of the workflow, `inception` is torch-fidelity's InceptionV3, `resnet56` is a
checkpoint of the user.
"""

import os.path
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vaebm.config import EXTRACTORS, ExtractorSettings, weights
from vaebm.config.weights import INCEPTION_URL, plugin_hash
from vaebm.config.yaml_files import read_settings
from vaebm.evaluation import resnet56
from vaebm.evaluation.classifier import load_classifier, to_float
from vaebm.evaluation.resnet56 import load_resnet56
from vaebm.measures.bootstrap import Features, Logits
from vaebm.measures.fidelity_backend import torch_fidelity
from vaebm.records.results import ExtractorRecord
from vaebm.system.checkpoint import load_model, load_plain
from vaebm.system.device import Progress
from vaebm.system.errors import UserError
from vaebm.system.plugins import imported


class _CustomExtractor(torch_fidelity.FeatureExtractorBase):  # type: ignore[misc]
    """torch-fidelity's interface to a network of ours: uint8 images → features and logits."""

    LAYERS = ("features", "logits")
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
        features = self.network.features(self.prepared(images))
        found = dict(zip(self.LAYERS, (features, self.network.logits(features)), strict=True))
        return tuple(found[layer].reshape(len(images), -1) for layer in self.features_list)

    @classmethod
    def get_provided_features_list(cls) -> tuple[str, str]:
        """Names of the layers."""
        return cls.LAYERS

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric: str) -> str:
        """The features for distances, the logits for the inception score."""
        return cls.LAYERS[metric == "isc"]

    @staticmethod
    def can_be_compiled() -> bool:
        """False: compiling takes longer than running."""
        return False


class ClassifierExtractor(_CustomExtractor):
    """The experiment's classifier; for stacks, features and logits of all channels are concatenated."""

    load = staticmethod(load_classifier)

    def prepared(self, images: Tensor) -> Tensor:
        """All channels of images (B, depth · C, H, W), in [0, 1]: (B · depth, C, H, W)."""
        return to_float(images).reshape(-1, *self.network.shape)


class ResNet56Extractor(_CustomExtractor):
    """CIFAR-10's ResNet-56."""

    load = staticmethod(load_resnet56)


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
    """(N, depth, classes), depth > 1 only for stacks and the classifier."""


Change = Callable[[Tensor], Tensor]
"""Maps an image (C, H, W) uint8 to another one."""


class _Images(Dataset[Tensor]):
    """Images (N, C, H, W) as the data set that torch-fidelity reads, optionally changed, with a progress bar."""

    def __init__(self, images: Tensor, change: Change | None, progress: Progress):
        self.images, self.change, self.progress = images, change, progress

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        self.progress.advance()
        return self.images[index] if self.change is None else self.change(self.images[index])


def download_inception() -> Path:
    """Path of Inception's standard weights in torch's cache, downloaded on first use.

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
        except (OSError, HTTPException, RuntimeError) as error:  # no network, an incomplete answer, other bytes
            raise UserError(
                f"{INCEPTION_URL}: expected the weights of inception, found no way to them ({error}); download it "
                "elsewhere and name its place as evaluation.inception_weights, or choose evaluation.extractor "
                "classifier or resnet56"
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
        shape: (C, H, W) of its images; (C,) if any size is allowed.
        device: device that it runs on.
    """

    kind: str
    weights: str
    path: Path
    shape: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(
        cls, kind: str, path: Path, device: torch.device | str = "cpu", settings: ExtractorSettings | None = None
    ) -> Self:
        """Load the extractor of a file of weights.

        Args:
            settings: of a plug-in's extractor, whose `path` may be of no file.

        Raises:
            UserError: no such file, or not one of such weights.
        """
        shape: tuple[int, ...]
        if kind == "classifier":
            content = load_model(path, "classifier")
            found, shape = content["hash"], tuple(content["network"]["shape"])
        elif settings is not None:
            found, shape = plugin_hash(settings), ()
        else:
            path = Path(os.path.expanduser(path))
            found, shape = weights.weights_hash(kind, path), resnet56.SHAPE if kind == "resnet56" else (3,)
            if kind == "inception":  # torch-fidelity unpickles the file without restrictions
                load_plain(path, "the weights of inception")
        extractor = cls(kind, found, path, shape, torch.device(device))
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
        """Features and logits of uint8 images (N, C, H, W).

        Raises:
            UserError: it is made for other images.
        """
        features, logits = self._layers(images, EXTRACTORS[self.kind].layers)
        return ExtractorOutput(features, logits.reshape(len(images), self.depth(tuple(images.shape[1:])), -1))

    def features(self, images: Tensor, change: Change | None = None) -> Features:
        """Features (N, D) of images (N, C, H, W), each changed first, without the logits, which may take gigabytes.

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
        features = self.depth(shape) * EXTRACTORS[self.kind].features
        return ExtractorRecord.model_validate(
            {**facts, "features": features, "torch-fidelity": torch_fidelity.__version__}
        )


def open_extractor(settings: Path, trained: Path | None, device: torch.device | str = "cpu") -> Extractor:
    """Open the extractor of a settings file.

    Args:
        settings: reference/<extractor>.yaml.
        trained: model of the classifier, if there is one.

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
    if chosen.weights is None and chosen.name != "inception":
        raise UserError(f"{settings}: extractor.weights: expected the path of a file, found none")
    return Extractor.of(chosen.name, download_inception() if chosen.weights is None else Path(chosen.weights), device)
