"""The experiment: one YAML file, validated once, one settings file per stage.

Every setting of the pipeline is a field below, with one sentence, its unit and its range. Nothing here imports torch or
mlflow: the Snakefile reads this module in every job.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

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


class UserError(ValueError):
    """A mistake of the user's: one line that says where, what was expected, what was found and what to do."""


S = TypeVar("S", bound="Settings")

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Several = Annotated[int, Field(ge=2)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Settings(BaseModel):
    """A frozen group of settings; unknown keys and values of another type are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


# ----------------------------------------------------------------------------------------------------------------- data
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


# ----------------------------------------------------------------------------------------------------------------- nvae
class NVAENetworkSettings(Settings):
    """Architecture of the hierarchical VAE (NVAE section 3)."""

    channels_encoder: Several
    """Channels of the encoder after its stem; doubled at every down-sampling."""
    channels_decoder: Several
    """Channels of the decoder at the resolution of the images; doubled at every down-sampling."""
    groups: Annotated[list[PositiveInt], Field(min_length=1)]
    """Latent groups at each scale, finest scale first."""
    latents: PositiveInt
    """Latent channels of a group."""
    preprocess_blocks: PositiveInt
    """Halvings of the resolution before the finest scale."""
    preprocess_cells: PositiveInt
    """Residual cells of each of these blocks, the last one halves."""
    postprocess_cells: PositiveInt
    """Residual cells of each block of the way back to the images, the first one doubles."""
    cells_encoder: PositiveInt
    """Residual cells of the encoder per latent group."""
    cells_decoder: PositiveInt
    """Residual cells of the decoder per latent group."""
    architecture: Literal["res_mbconv", "res_bnswish"] = "res_mbconv"
    """Residual operations: `res_mbconv` has depthwise inverted residuals in the decoder (the paper's)."""
    squeeze_excitation: bool = True
    """Gate the channels of each residual branch by their means."""
    residual_posterior: bool = True
    """Posterior parameters are offsets of the prior's (NVAE section 3.2)."""
    pixel_log_sigma_floor: float | None = None
    """Smallest log σ of the Gaussian decoder, on the scale [−1, 1]; none in the paper."""


class NVAETrainingSettings(Settings):
    """Training of the NVAE (NVAE sections 3.3 and 4)."""

    epochs: PositiveInt
    """Passes over the training images."""
    batch: Several
    """Images per step, over all processes."""
    learning_rate: PositiveFloat = 1e-2
    """Of Adamax, after the warm-up."""
    learning_rate_min: PositiveFloat = 1e-4
    """End of the cosine."""
    warmup_epochs: NonNegativeInt = 5
    """Epochs of linear growth of the learning rate."""
    weight_decay: NonNegativeFloat = 3e-4
    """L2 term added to the gradient of every parameter."""
    norm_weight: NonNegativeFloat = 1e-1
    """λ of the spectral and of the batch-norm regulariser."""
    norm_every: PositiveInt = 1
    """Steps between two uses of the regularisers (then weighted by this number); 1 in the paper."""
    kl_warmup: Fraction = 0.3
    """Part of the training over which the KL coefficient grows to 1."""
    kl_coefficient_min: Fraction = 1e-4
    """KL coefficient at the start, and the part of the training that it stays there."""
    kl_balancing: bool = True
    """Balance the KL of the groups while the coefficient is below 1 (NVAE appendix A)."""
    max_skipped: PositiveInt = 20
    """Steps with a non-finite loss or gradient, skipped in a row, that stop the run."""


class NVAESettings(Settings):
    """Stage `nvae`."""

    network: NVAENetworkSettings
    training: NVAETrainingSettings

    @model_validator(mode="after")
    def _warmup_is_shorter_than_training(self) -> NVAESettings:
        if self.training.warmup_epochs >= self.training.epochs:
            raise ValueError(f"training.warmup_epochs must be below training.epochs ({self.training.epochs}), found {self.training.warmup_epochs}")
        return self


# ------------------------------------------------------------------------------------------------------------------ ebm
class EnergyNetworkSettings(Settings):
    """Architecture of the energy network (VAEBM appendix E): a stem, residual blocks, a sum over positions, a linear head."""

    channels: PositiveInt
    """n, the channels of the stem."""
    widths: Annotated[list[PositiveInt], Field(min_length=1)]
    """Output channels of each residual block, in units of n."""
    down: list[NonNegativeInt]
    """Blocks (from 0) that end with a 2×2 mean pool."""

    @model_validator(mode="after")
    def _down_names_blocks(self) -> EnergyNetworkSettings:
        if any(block >= len(self.widths) for block in self.down):
            raise ValueError(f"down must name blocks 0 to {len(self.widths) - 1}, found {self.down}")
        return self


class ChainSettings(Settings):
    """A Langevin chain in noise space (VAEBM section 3.2, algorithm 1)."""

    steps: NonNegativeInt
    """K, Langevin steps."""
    step_size: PositiveFloat
    """η in ε ← ε − η/2 ∇U(ε) + √η ω."""


class EBMTrainingSettings(Settings):
    """Training of the energy by contrastive divergence (VAEBM section 3.1)."""

    iterations: PositiveInt
    """Updates of the energy's weights."""
    batch: Several
    """Positive images, and chains, per update, over all processes."""
    learning_rate: PositiveFloat
    """Of Adam."""
    learning_rate_decay: Literal["none", "cosine"] = "none"
    """Constant as published, or a cosine to zero."""
    beta1: Decay = 0.99
    """Adam's decay of the mean gradient."""
    beta2: Decay = 0.999
    """Adam's decay of the squared gradient."""
    weight_decay: NonNegativeFloat = 3e-5
    """L2 term added to the gradient."""
    spectral_weight: NonNegativeFloat = 0.2
    """Of the sum of the largest singular values of all convolutions."""
    adaptive_clip: bool = True
    """Clip each gradient at three standard deviations of its own history."""
    energy_penalty: NonNegativeFloat = 0.0
    """Of the mean squared energy of positives and negatives; none in the paper."""
    average_decay: Decay = 0.0
    """Decay of the moving average of the weights that is published; 0: the raw weights, as in the paper."""
    snapshot_every: PositiveInt = 500
    """Iterations between two snapshots."""


class GuardSettings(Settings):
    """When a training of the energy counts as diverged."""

    gap_limit: PositiveFloat = 10.0
    """Largest |mean E(data) − mean E(chains)| in units of the energies' standard deviation."""
    patience: PositiveInt = 20
    """Iterations in a row beyond the limit, or non-finite, before the training stops."""


class EBMSettings(Settings):
    """Stage `ebm`."""

    network: EnergyNetworkSettings
    potential: Literal["noise", "density"] = "noise"
    """`noise`: the exact law in noise space; `density`: the published program's, without the Jacobian."""
    chain: ChainSettings
    """The chain of the training."""
    negatives: Literal["sample", "mean"] = "sample"
    """Negative images are decoder samples or decoder means."""
    training: EBMTrainingSettings
    guard: GuardSettings = GuardSettings()


# -------------------------------------------------------------------------------------------------- samples, evaluation
class SamplesSettings(Settings):
    """Stage `samples`: decoder means after the test chain."""

    count: Several
    """Images."""
    batch: PositiveInt
    """Images computed at once."""
    shards: PositiveInt = 1
    """Files, and jobs, that the images are spread over."""
    chain: ChainSettings
    """The test chain; the variant `nvae` takes no step."""

    @model_validator(mode="after")
    def _every_shard_has_an_image(self) -> SamplesSettings:
        if self.shards > self.batches:
            raise ValueError(f"shards must be at most the {self.batches} batches that count and batch make, found {self.shards}")
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


class EvaluationSettings(Settings):
    """Stage `evaluation`."""

    classifier: ClassifierSettings
    kid_subsets: PositiveInt = 100
    """Subsets that KID is averaged over."""
    kid_subset_size: Several = 1000
    """Images in each of them."""
    elbo_samples: PositiveInt = 10
    """Draws of the posterior per held-out image."""
    ood: list[Literal["interpolation", "turned", "photographs"]]
    """Sets that held-out images are told from by log p(x) − E(x)."""

    @field_validator("ood")
    @classmethod
    def _no_set_twice(cls, sets: list[str]) -> list[str]:
        if len(set(sets)) < len(sets):
            raise ValueError(f"each set at most once, found {sets}")
        return sets


# ------------------------------------------------------------------------------------------------------------ resources
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


def fingerprint(value: Any) -> str:
    """SHA-256 of a plain value, by its canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
