"""Settings of stage `nvae`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vaebm.config.base import Fraction, NonNegativeFloat, NonNegativeInt, Settings, Several


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
