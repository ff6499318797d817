"""Settings of stage `prior`, the energy on noise."""

from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, SerializeAsAny, model_validator

from vaebm.config.base import Decay, Settings, Several
from vaebm.config.ebm import LangevinSettings


class NoiseEnergySettings(Settings):
    """Energy on the noise of all latent groups as one vector: a sum of multilayer perceptrons, and its chain."""

    hidden: Annotated[list[PositiveInt], Field(min_length=1)] = [256, 256]
    """Widths of the hidden layers."""
    dropout: Decay = 0.3
    """Probability with which the training drops a hidden unit."""
    rounds: PositiveInt = 1
    """Number of networks. Each further one is trained on chains of those before it, which have to be good."""
    chain: SerializeAsAny[LangevinSettings]
    """Chain in noise alone, without the decoder, from standard normal noise. The decoder's chain starts at its end."""


class PriorSettings(NoiseEnergySettings):
    """Stage `prior`: an energy on noise by noise-contrastive estimation, posterior draws against prior draws."""

    iterations: PositiveInt = 2000
    """Updates of each network."""
    batch: Several = 256
    """Training images, each with a posterior draw, and as many draws of the prior, per update."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2; the paper does so except for digits."""
    learning_rate: PositiveFloat = 1e-3
    """Adam learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of the weights (AdamW)."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images kept for validation. The weights with the least loss on it become the network."""
    validate_every: PositiveInt = 100
    """Updates between two validations."""
    negatives: Several = 10_000
    """Chains from which a further round takes its draws of the prior."""

    @model_validator(mode="after")
    def _chains_fill_a_batch(self) -> Self:
        if self.negatives < self.batch:
            raise ValueError(f"negatives must be at least batch ({self.batch}), found {self.negatives}")
        return self
