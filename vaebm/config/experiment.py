"""The experiment: one section per stage, and what its parts have to fit."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import NonNegativeInt, PositiveInt, field_validator, model_validator

from vaebm.config.base import Settings, fingerprint
from vaebm.config.ebm import EBMSettings
from vaebm.config.evaluation import ClassifierSettings, EvaluationSettings, SamplesSettings
from vaebm.config.nvae import NVAESettings

BASELINE = "nvae"
"""The variant that is the NVAE alone: the same noise as the others, no chain."""

VARIANTS = (BASELINE, "vaebm")


class DatasetFacts(NamedTuple):
    """What the settings of an experiment have to fit."""

    side: int
    """Height and width of the images, padding included."""
    channels: int
    """Of the images."""
    train: int
    """Training images."""
    heldout: int
    """Held-out images."""
    preparable: bool = True
    """Whether `vaebm data` makes it."""


DATASETS = {
    "digits": DatasetFacts(side=8, channels=1, train=1500, heldout=297),
    "mnist": DatasetFacts(side=32, channels=1, train=60_000, heldout=10_000, preparable=False),
    "stacked_mnist": DatasetFacts(side=32, channels=3, train=60_000, heldout=10_000, preparable=False),
    "cifar10": DatasetFacts(side=32, channels=3, train=50_000, heldout=10_000, preparable=False),
    "celeba64": DatasetFacts(side=64, channels=3, train=162_770, heldout=19_867, preparable=False),
    "lsun_church64": DatasetFacts(side=64, channels=3, train=126_227, heldout=300, preparable=False),
    "celebahq256": DatasetFacts(side=256, channels=3, train=27_000, heldout=3_000, preparable=False),
}
"""The registry of `vaebm.data`, which imports torch and so cannot be asked here; a test compares the two."""


class DataSettings(Settings):
    """Which images."""

    dataset: str
    """Name in the registry of `vaebm.data`; prepared under data/<dataset>."""

    @field_validator("dataset")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        if name not in DATASETS:
            raise ValueError(f"there is no data set {name!r}; data sets that exist: {', '.join(DATASETS)}")
        return name


class CPUResources(Settings):
    """What one job of a stage may use; outside the settings files, so that changing it reruns nothing."""

    threads: PositiveInt = 1
    """CPU threads."""
    mem_mb: PositiveInt = 2000
    """Memory, in MB."""
    runtime: PositiveInt = 60
    """Time, in minutes; trainings stop themselves before it and are resumed."""


class GPUResources(CPUResources):
    """The same, for stages that can use a GPU."""

    gpu: NonNegativeInt = 0
    """GPUs; 0: the CPU."""


class Resources(Settings):
    """Resources of the jobs of each stage."""

    data: CPUResources = CPUResources()
    classifier: CPUResources = CPUResources()
    nvae: GPUResources = GPUResources()
    ebm: GPUResources = GPUResources()
    samples: GPUResources = GPUResources()
    evaluation: CPUResources = CPUResources()
    benchmarks: CPUResources = CPUResources()


class Experiment(Settings):
    """An experiment file: one section per stage. The pipeline needs all of them (`missing`)."""

    data: DataSettings
    nvae: NVAESettings
    ebm: EBMSettings | None = None
    samples: SamplesSettings | None = None
    evaluation: EvaluationSettings | None = None
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _fits_the_images(self) -> Experiment:
        """What would otherwise end a run in the middle."""
        facts, network = DATASETS[self.data.dataset], self.nvae.network
        if facts.side % 2**network.halvings:
            raise ValueError(
                f"nvae.network: {facts.side}×{facts.side} images cannot be halved {network.halvings} times (preprocess_blocks and scales of groups)"
            )
        if 2 * network.crop >= facts.side:
            raise ValueError(f"nvae.network.crop: expected less than half of the images' {facts.side} rows, found {network.crop}")
        if network.decoder == "logistic_mixture" and facts.channels != 3:
            raise ValueError(f"nvae.network.decoder: logistic_mixture is made for 3 colours, {self.data.dataset} has {facts.channels} channel(s)")
        batches = {"nvae.training": self.nvae.training.batch}
        if self.ebm is not None:
            if network.decoder != "normal":
                raise ValueError(f"nvae.network.decoder: the chain of stage ebm needs the decoder normal, found {network.decoder}")
            if facts.side < 2 ** len(set(self.ebm.network.down)):
                raise ValueError(f"ebm.network.down: {facts.side}×{facts.side} images cannot be halved {len(set(self.ebm.network.down))} times")
            batches["ebm.training"] = self.ebm.training.batch
        if self.evaluation is not None:
            batches["evaluation.classifier"] = self.evaluation.classifier.batch
        for where, batch in batches.items():
            if batch > facts.train:
                raise ValueError(f"{where}.batch: expected at most the {facts.train} training images, found {batch}")
        if self.samples is not None and self.evaluation is not None:
            smaller, subset = min(self.samples.count, facts.train), self.evaluation.kid_subset_size
            if subset > smaller:
                raise ValueError(f"evaluation.kid_subset_size: expected at most the smaller of samples and training images, {smaller}, found {subset}")
        return self

    @property
    def missing(self) -> list[str]:
        """What the pipeline needs and this experiment does not have, in words; it can still be described, and its stages run by hand."""
        found = [f"a section {name}" for name in ("ebm", "samples", "evaluation") if getattr(self, name) is None]
        if not DATASETS[self.data.dataset].preparable:
            found.append(f"a way to prepare {self.data.dataset}")
        return found

    def hash(self) -> str:
        """Hash of every setting that a figure depends on; `resources` are left out."""
        return fingerprint(self.model_dump(exclude={"resources"}))


STAGES: dict[str, type[Settings]] = {
    "nvae": NVAESettings,
    "ebm": EBMSettings,
    "samples": SamplesSettings,
    "evaluation": EvaluationSettings,
    "classifier": ClassifierSettings,
}
