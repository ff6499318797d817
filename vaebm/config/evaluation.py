"""Settings of the stages `samples` and `evaluation`, and of the feature extractors."""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from vaebm.config.base import MOST_CHANNELS, ByName, Choice, Registered, Settings, Several, later
from vaebm.config.data import DataSettings
from vaebm.config.datasets import DATASETS, DatasetFacts
from vaebm.config.ebm import LangevinSettings
from vaebm.system.plugins import Implementation, Registry


class SamplesSettings(Settings):
    """Stage `samples`: decoder means after the test chain."""

    count: Several = 50_000
    """Number of images."""
    batch: PositiveInt = 40
    """Images per batch."""
    shards: PositiveInt = 1
    """Number of files, each made by its own job."""
    stretch: bool = False
    """Stretch each image from its minimum to its maximum, as the published program does; false: clamp to [0, 1]."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """`tf32`: TF32 convolutions and matrix products on NVIDIA GPUs. `bfloat16`: TF32, and bfloat16 features of both
    networks within chains."""
    chain: SerializeAsAny[LangevinSettings]
    """Test chain; the variant `nvae` takes no steps."""

    @model_validator(mode="after")
    def _every_shard_has_an_image(self) -> Self:
        if self.shards > self.batches:
            raise ValueError(
                f"shards must be at most the {self.batches} batches that count and batch make, found {self.shards}"
            )
        return self

    @property
    def batches(self) -> int:
        """Number of batches; the last one may be smaller."""
        return -(-self.count // self.batch)

    def shard(self, index: int) -> range:
        """Global indices of the images of shard `index`: whole batches, so that sharding changes no image."""
        start, stop = index * self.batches // self.shards, (index + 1) * self.batches // self.shards
        return range(start * self.batch, min(stop * self.batch, self.count))


class ClassifierSettings(Settings):
    """Classifier trained on the images, whose features measure image quality without Inception weights."""

    channels: PositiveInt = 32
    """Channels of the first layer; there are 64 features."""
    epochs: PositiveInt = 60
    """Passes over the training images."""
    batch: Several = 50
    """Images per step."""
    learning_rate: PositiveFloat = 3e-3
    """Peak Adam learning rate of the one-cycle schedule."""
    networks: PositiveInt = later(1)
    """Networks from different seeds. The first has the features; number of modes and KL are means over all."""

    @field_validator("channels")
    @classmethod
    def _can_be_built(cls, channels: int) -> int:
        if channels > MOST_CHANNELS:
            raise ValueError(f"expected at most {MOST_CHANNELS:,} channels, found {channels:,}")
        return channels


EXTRACTORS: Registry["ExtractorFacts"] = Registry("extractor")

METRICS: Registry[Any] = Registry("metric of a plug-in")
"""Name → `records.metrics.Metric`, for the metrics of plug-ins."""

PATHS = {"inception": "inception_weights", "resnet56": "resnet56_weights", "DINOv2": "dinov2_weights"}
"""Extractor with published weights → the setting of `evaluation` with their path, on which no metric depends."""


class ExtractorSettings(Choice):
    """Feature extractor, with the local path of its weights."""

    registry = EXTRACTORS
    tag: ClassVar = "name"
    name: Annotated[str, Registered(EXTRACTORS)]
    """Name of the network."""
    weights: Annotated[str, Field(min_length=1)] | None = None
    """Weights file, relative to the project; None: the experiment's classifier, or downloaded weights."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = later(None)
    """SHA-256 of the weights file; None: any, but the standard one for Inception."""


class ExtractorFacts(NamedTuple):
    """A registered extractor; nothing in it depends on weights."""

    network: Implementation
    """Function of the settings: an object with the functions `features` from images (B, C, H, W) uint8 to (B, D), and
    `logits` from these to (B, classes), if it has `layers` for both. Or a class of torch-fidelity's interface."""
    features: int
    """D, of an image, or of a channel of a stack."""
    settings: type[ExtractorSettings] = ExtractorSettings
    """Class of its settings."""
    layers: tuple[str, ...] = ("features", "logits")
    """torch-fidelity's names of the features, of the logits, if it has any, and of the classifier's labels."""
    batch: int = 500
    """Batch size; fixed, because the last digits of a metric may depend on it."""


_INCEPTION = "vaebm.measures.fidelity_backend:torch_fidelity.FeatureExtractorInceptionV3"
EXTRACTORS.own.update(
    classifier=ExtractorFacts(
        "vaebm.evaluation.extractors:ClassifierExtractor", 64, layers=("features", "logits", "labels")
    ),
    # the layers that FID, KID and the inception score are defined on
    inception=ExtractorFacts(_INCEPTION, 2048, layers=("2048", "logits_unbiased"), batch=50),
    resnet56=ExtractorFacts("vaebm.evaluation.extractors:ResNet56Extractor", 64),
    DINOv2=ExtractorFacts("vaebm.evaluation.extractors:DINOv2Extractor", 1024, layers=("features",), batch=50),
)


class MetricSettings(Choice):
    """Metric of a plug-in."""

    registry = METRICS
    tag: ClassVar = "name"
    name: Annotated[str, Registered(METRICS)]
    """Name of a registered metric."""


class PrecisionRecallSettings(Settings):
    """Precision and recall by nearest neighbours (Kynkäänniemi et al., 2019)."""

    images: Several = 10_000
    """Number of samples, and of training images."""
    neighbours: PositiveInt = 3
    """k: the ball around each image reaches to its k-th neighbour."""

    @model_validator(mode="after")
    def _every_image_has_neighbours(self) -> Self:
        if self.neighbours >= self.images:
            raise ValueError(f"neighbours must be below images, {self.images}, found {self.neighbours}")
        return self


class StepsSettings(Settings):
    """Sample quality and energy along the chain."""

    images: Several = 5000
    """Number of samples, the first ones."""
    counts: list[NonNegativeInt] = [0, 4, 8, 16, 32]
    """Chain lengths at which to measure, increasing; one chain runs to the last."""

    @field_validator("counts")
    @classmethod
    def _rise(cls, counts: list[int]) -> list[int]:
        if not counts or counts != sorted(set(counts)):
            raise ValueError(f"expected rising numbers of steps, found {counts}")
        return counts


class AnnealedSettings(Settings):
    """Annealed importance sampling of log Z (Neal, 2001), from the NVAE to VAEBM by Metropolis-corrected steps."""

    chains: Several = 500
    """Number of chains."""
    temperatures: PositiveInt = 100
    """K, number of values of β from 0 to 1, each with a step and a gradient. More raise the effective sample size."""
    step_size: PositiveFloat = 0.1
    """η of the steps. The mean weight has no bias for any η. The bias of its logarithm depends on η."""


DERIVED = ("interpolation", "turned", "photographs")
"""OOD sets made from the held-out images or in their shape."""

OODName = Annotated[
    str,
    Registered(DATASETS, DERIVED, what="set", advice="files of your own are a section with dataset: folder or arrays"),
]
OODEntry = Annotated[
    Annotated[OODName, Tag("(name)")] | Annotated[SerializeAsAny[DataSettings], Tag("(section)")],
    Discriminator(lambda found: f"({'name' if isinstance(found, str) else 'section'})"),
]
"""OOD set: a name, or a section like `data`. Keys of files have no parentheses, unlike these tags."""


class EvaluationSettings(Settings):
    """Stage `evaluation`."""

    extractor: Annotated[ExtractorSettings, ByName(ExtractorSettings)] = Field("classifier", validate_default=True)
    """Feature extractor: a classifier trained on the images, torch-fidelity's InceptionV3, a CIFAR-10 ResNet-56, or
    DINOv2's ViT-L/14."""
    inception_weights: Annotated[str, Field(min_length=1)] | None = None
    """File of the standard Inception weights, relative to the project; default: torch-fidelity's download."""
    resnet56_weights: Annotated[str, Field(min_length=1)] | None = None
    """Checkpoint of the ResNet-56, relative to the project."""
    dinov2_weights: Annotated[str, Field(min_length=1)] | None = later(None)
    """File of DINOv2's published weights, relative to the project; default: downloaded."""
    classifier: ClassifierSettings | None = None
    """Settings of the classifier, required for the extractor `classifier` and for the modes of stacks."""
    bootstrap: Several = 200
    """Bootstrap resamples for the 95 % intervals."""
    inception_splits: PositiveInt = 10
    """Parts of the samples over which the inception score is averaged."""
    precision_recall: PrecisionRecallSettings = PrecisionRecallSettings()
    steps: StepsSettings = StepsSettings()
    kid_subsets: PositiveInt = 100
    """Subsets over which KID is averaged."""
    kid_subset_size: Several = 1000
    """Images per KID subset."""
    elbo_samples: PositiveInt = 10
    """Posterior samples per image, for the ELBO and the importance-weighted log-likelihood."""
    ood: list[OODEntry] = []
    """OOD sets, scored by log p(x) − E(x) against held-out images: names, or sections like `data`."""
    annealed: AnnealedSettings | None = later(None)
    """Annealed importance sampling of log Z; None: importance sampling alone, with as many draws as samples."""
    metrics: list[Annotated[MetricSettings, ByName(MetricSettings)]] = later([])
    """Further metrics, of plug-ins: names, or sections with `name` and the metric's settings."""
    further_extractors: list[Annotated[ExtractorSettings, ByName(ExtractorSettings)]] = later([])
    """Extractors of further distances, precision and recall, like `extractor`."""

    @field_validator("ood")
    @classmethod
    def _have_distinct_names(cls, sets: list[OODEntry]) -> list[OODEntry]:
        names = [_named_data(one)[0] for one in sets]
        if len(set(names)) < len(names):
            raise ValueError(f"each set at most once, found {', '.join(names)}")
        taken = {*DERIVED, *(name.removesuffix(str(facts.side)) for name, facts in DATASETS.items())}
        for one in sets:
            if not isinstance(one, str) and one.dataset not in DATASETS and one.display_name in taken:
                raise ValueError(
                    f"name: figures call another set {one.display_name}; choose another name for the user's files"
                )
        return sets

    @field_validator("further_extractors")
    @classmethod
    def _are_others(cls, further: list[ExtractorSettings], info: ValidationInfo) -> list[ExtractorSettings]:
        names = [one.name for one in (info.data["extractor"], *further)] if "extractor" in info.data else []
        if len(set(names)) < len(names):
            raise ValueError(f"each extractor at most once, found {', '.join(names)}")
        return further

    @property
    def extractions(self) -> dict[str, ExtractorSettings]:
        """Name of each extractor → settings that open it, `extractor` first."""
        paths = {name: getattr(self, key) for name, key in PATHS.items()}
        return {
            one.name: one.model_copy(update={"weights": paths.get(one.name) or one.weights})
            for one in (self.extractor, *self.further_extractors)
        }

    def extractor_problem(self, data: DatasetFacts) -> str | None:
        """One line on an extractor that does not fit the images or its settings; None: it fits."""
        extractors = self.extractions
        names = " and ".join(extractors)
        trained = "classifier" in extractors or bool(data.stacks)
        if self.classifier is None and trained:
            user = "the modes of stacks need" if data.stacks else "the extractor classifier needs"
            return f"classifier: expected its settings, which {user}, found none"
        if self.classifier is not None and not trained:
            return f"classifier: the extractor {names} needs none; leave it out"
        for name, key in PATHS.items():
            if name not in extractors and getattr(self, key) is not None:
                return f"{key}: only the extractor {name} has them, found the extractor {names}; leave it out"
        if "resnet56" in extractors and extractors["resnet56"].weights is None:
            return "resnet56_weights: expected the path of a checkpoint, found none"
        if "inception" in extractors and data.channels != 3:
            return f"extractor: inception is made for 3 colours, the images have {data.channels} channel(s)"
        if "resnet56" in extractors and (data.channels, data.side) != (3, 32):
            found = f"the images are {data.side}×{data.side} with {data.channels} channel(s)"
            return f"extractor: resnet56 is made for 32×32 images of 3 colours, {found}"
        return None

    @property
    def ood_sets(self) -> dict[str, DataSettings | None]:
        """Name of each OOD set in metrics → its data; None for sets derived from the held-out images."""
        return dict(map(_named_data, self.ood))

    @property
    def without_paths(self) -> Self:
        """These settings without local paths, which change no metric."""
        named = [one if isinstance(one, str) or one.dataset not in DATASETS else one.dataset for one in self.ood]
        sets = [one if isinstance(one, str) else one.model_copy(update={"path": None}) for one in named]
        every = (self.extractor, *self.further_extractors)
        first, *further = (one.model_copy(update={"weights": None, "sha256": None}) for one in every)
        others = {"extractor": first, "further_extractors": further}
        return self.model_copy(update={"ood": sets, **others, **dict.fromkeys(PATHS.values())})


def _named_data(one: str | DataSettings) -> tuple[str, DataSettings | None]:
    """Name of an OOD set in metrics, and its data."""
    if isinstance(one, str) and one in DERIVED:
        return one, None
    data = DataSettings.model_validate(one) if isinstance(one, str) else one
    return data.display_name, data
