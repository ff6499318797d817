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
    """Height and width of the images."""
    train: int
    """Training images."""
    heldout: int
    """Held-out images."""


DATASETS = {"digits": DatasetFacts(side=8, train=1500, heldout=297)}
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
    """An experiment file: one section per stage."""

    data: DataSettings
    nvae: NVAESettings
    ebm: EBMSettings
    samples: SamplesSettings
    evaluation: EvaluationSettings
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _fits_the_images(self) -> Experiment:
        """What would otherwise end a run in the middle."""
        facts, network = DATASETS[self.data.dataset], self.nvae.network
        halvings = network.preprocess_blocks + len(network.groups) - 1
        if facts.side % 2**halvings:
            raise ValueError(f"nvae.network: {facts.side}×{facts.side} images cannot be halved {halvings} times (preprocess_blocks and scales of groups)")
        if facts.side < 2 ** len(set(self.ebm.network.down)):
            raise ValueError(f"ebm.network.down: {facts.side}×{facts.side} images cannot be halved {len(set(self.ebm.network.down))} times")
        batches = {
            "nvae.training": self.nvae.training.batch,
            "ebm.training": self.ebm.training.batch,
            "evaluation.classifier": self.evaluation.classifier.batch,
        }
        for where, batch in batches.items():
            if batch > facts.train:
                raise ValueError(f"{where}.batch: expected at most the {facts.train} training images, found {batch}")
        smaller, subset = min(self.samples.count, facts.train), self.evaluation.kid_subset_size
        if subset > smaller:
            raise ValueError(f"evaluation.kid_subset_size: expected at most the smaller of samples and training images, {smaller}, found {subset}")
        return self

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
