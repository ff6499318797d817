"""Settings of the stages `samples` and `evaluation`, and of the extractors that the latter measures with."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, field_validator, model_validator

from vaebm.config.base import NonNegativeInt, Settings, Several
from vaebm.config.data import DATASETS, DataSettings
from vaebm.config.ebm import ChainSettings


class SamplesSettings(Settings):
    """Stage `samples`: decoder means after the test chain."""

    count: Several
    """Images."""
    batch: PositiveInt
    """Images computed at once."""
    shards: PositiveInt = 1
    """Files, and jobs, that the images are spread over."""
    stretch: bool = False
    """Whether each image is stretched from its darkest to its brightest value, as the published program writes it; else clamped to [0, 1]."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """`tf32`: an NVIDIA GPU rounds the factors of convolutions and products to ten bits. `bfloat16`: so, and within chains
    the features of both networks are kept and computed in bfloat16."""
    chain: ChainSettings
    """The test chain; the variant `nvae` takes no step."""

    @model_validator(mode="after")
    def _every_shard_has_an_image(self) -> SamplesSettings:
        if self.shards > self.batches:
            raise ValueError(
                f"shards must be at most the {self.batches} batches that count and batch make, found {self.shards}"
            )
        return self

    @property
    def batches(self) -> int:
        """Batches that make `count` images; the last one may be smaller."""
        return -(-self.count // self.batch)

    def shard(self, index: int) -> range:
        """Global indices of the images of shard `index`; whole batches, so that the shards change no image."""
        start, stop = (index * self.batches // self.shards, (index + 1) * self.batches // self.shards)
        return range(start * self.batch, min(stop * self.batch, self.count))


class ClassifierSettings(Settings):
    """The classifier whose features measure image quality where there are no Inception weights."""

    channels: PositiveInt
    """Channels of its first layer; it has 64 features."""
    epochs: PositiveInt
    """Passes over the training images."""
    batch: Several
    """Images per step."""
    learning_rate: PositiveFloat
    """Of Adam, at the top of one cycle."""


Extractor = Literal["classifier", "inception", "resnet56"]

NOT_TRAINED = ("inception", "resnet56")
"""Extractors whose weights are a file of others; `evaluation` has a setting <extractor>_weights for each."""

PATHS = {f"{name}_weights" for name in NOT_TRAINED}
"""Settings of `evaluation` that say where files stand on this machine: no figure depends on them."""


class ExtractorSettings(Settings):
    """The network whose features measure image quality, and where its weights stand on this machine."""

    name: Extractor
    """Which network."""
    weights: str | None = None
    """File of the weights, seen from the project's folder; none: the classifier that the experiment trains, or Inception's weights, downloaded."""


class PrecisionRecallSettings(Settings):
    """Precision and recall by nearest neighbours (Kynkäänniemi et al., 2019)."""

    images: Several
    """Samples, and as many training images."""
    neighbours: PositiveInt = 3
    """k: around each image lies a ball that reaches to its k-th neighbour."""

    @model_validator(mode="after")
    def _every_image_has_neighbours(self) -> PrecisionRecallSettings:
        if self.neighbours >= self.images:
            raise ValueError(f"neighbours must be below images, {self.images}, found {self.neighbours}")
        return self


class StepsSettings(Settings):
    """Quality and energy of samples after other numbers of steps than the test chain's."""

    images: Several
    """The first of the samples."""
    counts: list[NonNegativeInt]
    """Numbers of steps, rising; one chain goes to the last."""

    @field_validator("counts")
    @classmethod
    def _rise(cls, counts: list[int]) -> list[int]:
        if not counts or counts != sorted(set(counts)):
            raise ValueError(f"expected rising numbers of steps, found {counts}")
        return counts


Derived = Literal["interpolation", "turned", "photographs"]
"""OOD sets that are made of the held-out images themselves, or in their form."""
DERIVED: tuple[str, ...] = get_args(Derived)

OODName = Annotated[str, Field(json_schema_extra={"enum": [*DERIVED, *DATASETS]})]
OODSet = Annotated[
    Annotated[OODName, Tag("(name)")] | Annotated[DataSettings, Tag("(section)")],
    Discriminator(lambda found: f"({'name' if isinstance(found, str) else 'section'})"),
]
"""An OOD set: a name, or a section as `data` is, for a path or files of the user's. No key of a file is in parentheses, as the tags are."""


class EvaluationSettings(Settings):
    """Stage `evaluation`."""

    extractor: Extractor = "classifier"
    """What image quality is measured with: a classifier trained on the images, torch-fidelity's InceptionV3, or a ResNet-56 of CIFAR-10."""
    inception_weights: Annotated[str, Field(min_length=1)] | None = None
    """Where the file with Inception's standard weights stands, seen from the project's folder; none: torch-fidelity's is downloaded."""
    resnet56_weights: Annotated[str, Field(min_length=1)] | None = None
    """Where a checkpoint of the ResNet-56 stands, seen from the project's folder."""
    classifier: ClassifierSettings | None = None
    """The extractor `classifier`, or what tells the modes of stacks; none where neither is asked for."""
    bootstrap: Several = 200
    """Resamples that the 95 % intervals come from."""
    inception_splits: PositiveInt = 10
    """Parts of the samples that the inception score is averaged over."""
    precision_recall: PrecisionRecallSettings
    steps: StepsSettings
    kid_subsets: PositiveInt = 100
    """Subsets that KID is averaged over."""
    kid_subset_size: Several = 1000
    """Images in each of them."""
    elbo_samples: PositiveInt = 10
    """Draws of the posterior per image, for the ELBO and the importance-weighted log-likelihood."""
    ood: list[OODSet]
    """Sets that held-out images are told from by log p(x) − E(x): names, or sections as `data` is."""

    @field_validator("ood")
    @classmethod
    def _have_names_of_their_own(cls, sets: list[OODSet]) -> list[OODSet]:
        for one in sets:
            if isinstance(one, str) and one not in DERIVED and one not in DATASETS:
                known = f"sets that exist: {', '.join([*DERIVED, *DATASETS])}; files of your own are a section with dataset: folder or arrays"
                raise ValueError(f"there is no set {one!r}; {known}")
        called = [_described(one)[0] for one in sets]
        if len(set(called)) < len(called):
            raise ValueError(f"each set at most once, found {', '.join(called)}")
        taken = {*DERIVED, *(_described(name)[0] for name in DATASETS)}
        for one in sets:
            if not isinstance(one, str) and one.dataset not in DATASETS and one.called in taken:
                raise ValueError(
                    f"name: figures call another set {one.called}; choose another name for the user's files"
                )
        return sets

    @property
    def extraction(self) -> ExtractorSettings:
        """What opens the extractor."""
        return ExtractorSettings(
            name=self.extractor,
            weights=getattr(self, f"{self.extractor}_weights") if self.extractor in NOT_TRAINED else None,
        )

    def unfit(self, shape: tuple[int, int, int], stacks: bool) -> str | None:
        """In one line which extractor cannot measure images of `shape` (C, H, W), or lacks a setting or has one too many; None: it fits.

        Args:
            stacks: whether the channels are images of a labelled set each, which the classifier tells.
        """
        channels, height, width = shape
        trained = self.extractor == "classifier" or stacks
        if self.classifier is None and trained:
            return f"classifier: expected its settings, which {'the modes of stacks need' if stacks else 'the extractor classifier needs'}, found none"
        if self.classifier is not None and not trained:
            return f"classifier: the extractor {self.extractor} needs none; leave it out"
        for name in NOT_TRAINED:
            if name != self.extractor and getattr(self, f"{name}_weights") is not None:
                return f"{name}_weights: only the extractor {name} has them, found the extractor {self.extractor}; leave it out"
        if self.extractor == "resnet56" and self.resnet56_weights is None:
            return "resnet56_weights: expected the path of a checkpoint, found none"
        if self.extractor == "inception" and channels != 3:
            return f"extractor: inception is made for 3 colours, the images have {channels} channel(s)"
        if self.extractor == "resnet56" and shape != (3, 32, 32):
            return f"extractor: resnet56 is made for 32×32 images of 3 colours, the images are {height}×{width} with {channels} channel(s)"
        return None

    @property
    def ood_sets(self) -> dict[str, DataSettings | None]:
        """What figures call each OOD set → its data; None for a set that is made of the held-out images."""
        return dict(map(_described, self.ood))

    @property
    def without_paths(self) -> EvaluationSettings:
        """The same without the places of raw files and of weights, which change no figure."""
        sets = [
            one
            if isinstance(one, str)
            else one.dataset
            if one.dataset in DATASETS
            else one.model_copy(update={"path": None})
            for one in self.ood
        ]
        return self.model_copy(update={"ood": sets, **dict.fromkeys(PATHS)})


def _described(one: str | DataSettings) -> tuple[str, DataSettings | None]:
    """What figures call an OOD set, and its data."""
    if isinstance(one, str) and one in DERIVED:
        return one, None
    data = DataSettings(dataset=one) if isinstance(one, str) else one
    return data.called, data
