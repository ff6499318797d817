"""Settings of stage `wgan`, the generative adversarial network of the ablation."""

from pydantic import PositiveFloat, PositiveInt

from vaebm.config.base import Decay, Settings, Several
from vaebm.config.ebm import EnergyNetworkSettings


class WGANSettings(Settings):
    """Stage `wgan`: train the NVAE's decoder further as the generator of a Wasserstein GAN (VAEBM table 4)."""

    network: EnergyNetworkSettings = EnergyNetworkSettings()
    """Architecture of the critic, an energy network."""
    iterations: PositiveInt
    """Updates of the generator."""
    critic_steps: PositiveInt = 5
    """Updates of the critic per update of the generator."""
    batch: Several = 32
    """Training images, and as many generated images, per update."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2; the paper does so except for digits."""
    learning_rate: PositiveFloat = 1e-4
    """Adam learning rate of the generator."""
    critic_learning_rate: PositiveFloat = 1e-4
    """Adam learning rate of the critic."""
    beta1: Decay = 0.0
    """Adam β₁, decay of the mean gradient."""
    beta2: Decay = 0.9
    """Adam β₂, decay of the mean squared gradient."""
    gradient_penalty: PositiveFloat = 10.0
    """Weight of (‖∇critic‖ − 1)², between training and generated images."""
