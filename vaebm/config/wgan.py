"""Settings of stage `wgan`, the ablation's generative adversarial network."""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from vaebm.config.base import Decay, Settings, Several
from vaebm.config.ebm import EnergyNetworkSettings


class WGANSettings(Settings):
    """Stage `wgan`: the NVAE's decoder, trained further as the generator of a Wasserstein GAN (VAEBM table 4)."""

    network: EnergyNetworkSettings
    """Of the critic, an energy network."""
    iterations: PositiveInt
    """Updates of the generator."""
    critic_steps: PositiveInt = 5
    """Updates of the critic before each of them."""
    batch: Several
    """Images of the data, and of the generator, per update."""
    flip: bool = False
    """Turn each training image left to right with probability one half, as the paper does on all its data sets but the digits."""
    learning_rate: PositiveFloat = 1e-4
    """Of Adam, for the generator."""
    critic_learning_rate: PositiveFloat = 1e-4
    """Of Adam, for the critic, which has to follow the generator."""
    beta1: Decay = 0.0
    """Adam's decay of the mean gradient."""
    beta2: Decay = 0.9
    """Adam's decay of the squared gradient."""
    gradient_penalty: PositiveFloat = 10.0
    """Weight of the squared distance of the critic's gradient norm from 1, between data and generated images."""
