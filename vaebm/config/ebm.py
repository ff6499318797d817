"""Settings of stage `ebm`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vaebm.config.base import Decay, Fraction, NonNegativeFloat, NonNegativeInt, Settings, Several, later

Potential = Literal["noise", "density", "pixels"]

Start = Literal["prior", "uniform"]

Positives = Literal["clean", "matched"]


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


class ReplaySettings(Settings):
    """Chains that go on from where chains of earlier iterations ended (persistent chains)."""

    capacity: PositiveInt
    """Ends of chains that are kept, over all processes; the oldest make room for new ones."""
    probability: Fraction
    """That a chain goes on from one of them."""
    anneal_iterations: PositiveInt
    """Iterations over which that probability grows from 0."""


class EBMTrainingSettings(Settings):
    """Training of the energy by contrastive divergence (VAEBM section 3.1)."""

    iterations: PositiveInt
    """Updates of the energy's weights."""
    batch: Several
    """Positive images, and chains, per update, over all processes."""
    flip: bool = False
    """Turn each training image left to right with probability one half, as the paper does on all its data sets but the digits."""
    precision: Literal["float32", "tf32", "bfloat16", "float64"] = "float32"
    """`tf32`: an NVIDIA GPU rounds the factors of convolutions and products to ten bits. `bfloat16`: so, and within chains the
    features of both networks are kept and computed in bfloat16. `float64`: to compare."""
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
    gradient_norm_limit: PositiveFloat | None = None
    """Largest norm of the whole gradient, to which a larger one is scaled down after that; None: no limit, as in the paper."""
    energy_penalty: NonNegativeFloat = 0.0
    """Of the mean squared energy of positives and negatives; none in the paper."""
    average_decay: Decay = 0.0
    """Decay of the moving average of the weights that is published; 0: the raw weights, as in the paper."""
    snapshot_every: PositiveInt = 500
    """Iterations between two snapshots."""


class GuardSettings(Settings):
    """When a training of the energy counts as diverged, and what happens then."""

    gap_limit: PositiveFloat = 10.0
    """Largest |mean E(data) − mean E(chains)| in units of the energies' standard deviation."""
    growth_limit: Annotated[float, Field(gt=1)] = 1000.0
    """Largest |loss| and gradient norm in units of their medians over the last 100 good iterations."""
    patience: PositiveInt = 20
    """Iterations in a row beyond a limit, or non-finite, before the training stops."""
    restarts: NonNegativeInt = 0
    """How often a diverged training goes back to its last good snapshot, with another seed, before it stops for good."""
    restart_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the learning rate, at each restart."""


class SelectionSettings(Settings):
    """Which snapshot becomes the model: the one whose images are nearest to the training images, by the NVAE's own features."""

    candidates: PositiveInt = 3
    """The last good snapshots, the end of the training included, that are compared; 1: simply the last."""
    images: Several = 1000
    """Images of each of them, and training images, that are compared."""
    chain: ChainSettings | None = None
    """Of these images. That of the samples tells more than the training's, which is shorter; None: the training's."""


class EBMSettings(Settings):
    """Stage `ebm`."""

    network: EnergyNetworkSettings
    potential: Potential = "noise"
    """`noise`: the exact law in noise space; `density`: the published program's, without the Jacobian; `pixels`: the ablation's
    energy on pixels, whose chains move images and which knows no NVAE."""
    start: Start = "prior"
    """Chains start from the NVAE's prior; `uniform`: from uniform noise, for `pixels` only."""
    chain: ChainSettings
    """The chain of the training."""
    replay: ReplaySettings | None = None
    """None: every chain starts anew."""
    encoded: Fraction = 0.0
    """Part of the chains that start from encoded training images, not from the prior; none in the paper."""
    negatives: Literal["sample", "mean"] = "sample"
    """Negative images are decoder samples or decoder means."""
    positives: Positives = later("clean")
    """`clean`: positive images are training images, as published. `matched`: with the pixel noise of the decoder, as the negatives have it."""
    quantize_positives: bool = True
    """Positive images have the depth that the NVAE saw; false: 8 bits, as published."""
    training: EBMTrainingSettings
    guard: GuardSettings = GuardSettings()
    selection: SelectionSettings = SelectionSettings()

    @model_validator(mode="after")
    def _pixels_alone_start_and_stop_elsewhere(self) -> EBMSettings:
        if self.start == "uniform" and self.potential != "pixels":
            raise ValueError(f"start uniform belongs to potential pixels, found potential {self.potential}")
        if self.encoded and self.potential == "pixels":
            raise ValueError(
                f"encoded starts are noise of the NVAE: expected 0 with potential pixels, found {self.encoded}"
            )
        return self

    @model_validator(mode="after")
    def _matched_positives_have_noisy_negatives(self) -> EBMSettings:
        if self.positives == "matched" and (self.negatives == "mean" or self.potential == "pixels"):
            found = "potential pixels" if self.potential == "pixels" else "negatives mean"
            raise ValueError(
                f"positives matched carry the pixel noise of decoder samples: expected negatives with it, found {found}; choose positives clean"
            )
        return self

    @model_validator(mode="after")
    def _buffer_holds_a_batch(self) -> EBMSettings:
        if self.replay is not None and self.replay.capacity < self.training.batch:
            raise ValueError(
                f"replay.capacity must be at least training.batch ({self.training.batch}), found {self.replay.capacity}"
            )
        return self
