"""Settings of stage `ebm`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vaebm.config.base import Decay, NonNegativeFloat, NonNegativeInt, Settings, Several


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
