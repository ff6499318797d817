"""Settings of stage `nvae`."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vaebm.config.base import MOST_CHANNELS, Fraction, Settings, Several
from vaebm.config.checkpoint import ModelSettings

Architecture = Literal[
    "res_mbconv", "res53_mbconv", "res35_mbconv", "res55_mbconv", "mbconv_res",
    "mbconv_sep", "mbconv_sep11", "mbconv_den", "res_bnswish", "res_bnelu", "res_elu",
]  # fmt: skip


MOST_CELLS = 2000
"""Most cells of an NVAE; the largest experiment file has 184."""


class NVAENetworkSettings(Settings):
    """Hierarchical VAE (NVAE section 3)."""

    channels_encoder: Several = 128
    """Encoder channels after the stem; doubled at every down-sampling."""
    channels_decoder: Several = 128
    """Decoder channels at image resolution; doubled at every down-sampling."""
    groups: Annotated[list[PositiveInt], Field(min_length=1)] = [30]
    """Latent groups per scale, finest scale first. A single group makes a VAE without hierarchical towers."""
    latents: PositiveInt = 20
    """Latent channels per group."""
    preprocess_blocks: PositiveInt = 1
    """Blocks before the finest scale; each halves the resolution."""
    preprocess_cells: PositiveInt = 2
    """Residual cells per preprocess block; the last one halves."""
    postprocess_cells: PositiveInt = 2
    """Residual cells per postprocess block; the first one doubles the resolution."""
    cells_encoder: PositiveInt = 2
    """Encoder residual cells per latent group."""
    cells_decoder: PositiveInt = 2
    """Decoder residual cells per latent group."""
    architecture: Architecture = "res_mbconv"
    """Residual cells, by their published names (`nvae.cells.ARCHITECTURES`); the paper uses `res_mbconv`."""
    squeeze_excitation: bool = True
    """Squeeze-and-excitation in each residual branch."""
    residual_posterior: bool = True
    """Posterior parameters relative to the prior's (NVAE section 3.2)."""
    flows: NonNegativeInt = 0
    """Pairs of normalising-flow cells after the posterior of each group (NVAE section 3.2)."""
    decoder: Literal["normal", "logistic_mixture", "bernoulli"] = "normal"
    """Pixel distribution: `normal` for VAEBM; discretised logistic mixture or Bernoulli for the original NVAE."""
    mixtures: Several = 10
    """Components of `logistic_mixture`."""
    bits: Annotated[int, Field(ge=1, le=8)] = 8
    """Bits per channel to which the images are reduced before the network."""
    crop: NonNegativeInt = 0
    """Padding rows and columns at each border, excluded from the likelihood."""
    pixel_log_sigma_floor: float | None = None
    """Smallest log σ of the decoder `normal`, for pixels in [−1, 1]; none in the paper."""

    @property
    def single_group(self) -> bool:
        """Whether there is a single latent group."""
        return self.groups == [1]

    @property
    def halvings(self) -> int:
        """Halvings of the resolution from the images to the coarsest scale."""
        return self.preprocess_blocks + len(self.groups) - 1

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        outside = self.preprocess_blocks * (self.preprocess_cells + self.postprocess_cells)
        cells = outside + sum(self.groups) * (self.cells_encoder + self.cells_decoder + 2 * self.flows)
        if cells > MOST_CELLS:
            raise ValueError(f"expected at most {MOST_CELLS:,} cells in all groups and blocks, found {cells:,}")
        scales = min(self.halvings, 99)  # each doubles the channels
        most = max(self.channels_encoder, self.channels_decoder, self.latents, self.mixtures) * 2**scales
        if most > MOST_CHANNELS:
            raise ValueError(f"expected at most {MOST_CHANNELS:,} channels in all scales, found {most:,}")
        widths = {"channels_encoder": self.channels_encoder, "channels_decoder": self.channels_decoder}
        if self.single_group and self.channels_encoder != self.channels_decoder:
            raise ValueError(f"with a single latent group channels_encoder must equal channels_decoder, found {widths}")
        if self.architecture == "mbconv_den" and any(width % 8 for width in widths.values()):
            expected = "channels must be divisible by 8"
            raise ValueError(f"architecture mbconv_den has convolutions in 8 groups: {expected}, found {widths}")
        return self


class NVAETrainingSettings(Settings):
    """Training of the NVAE (NVAE sections 3.3 and 4)."""

    epochs: PositiveInt = 400
    """Passes over the training images."""
    batch: Several = 256
    """Images per step, over all processes."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2; the paper does so except for digits."""
    micro_batch: Several | None = None
    """Images per forward pass, over all processes; divides `batch`. Batch norms and KL balancing see one such part;
    gradients accumulate. None: the whole batch."""
    recompute: bool = False
    """Recompute residual cells in the backward pass (gradient checkpointing): several times less memory, a third more
    time, the same results."""
    precision: Literal["float32", "tf32", "bfloat16", "float64"] = "float32"
    """`tf32`: TF32 convolutions and matrix products on NVIDIA GPUs. `bfloat16`: TF32, and convolutions in bfloat16
    (autocast). `float64`: for comparison."""
    learning_rate: PositiveFloat = 1e-2
    """Adamax learning rate after the warm-up."""
    learning_rate_min: PositiveFloat = 1e-4
    """Learning rate at the end of the cosine."""
    warmup_epochs: NonNegativeInt = 5
    """Epochs of linear warm-up of the learning rate."""
    weight_decay: NonNegativeFloat = 3e-4
    """L2 term added to the gradient of every parameter."""
    norm_weight: NonNegativeFloat = 1e-1
    """λ of the spectral and the batch-norm regularisers."""
    norm_weight_initial: PositiveFloat | None = None
    """Initial λ, annealed to `norm_weight` while the KL coefficient grows; None: constant."""
    norm_every: PositiveInt = 1
    """Steps between applications of the regularisers, each weighted by this number; 1 in the paper."""
    kl_warmup: Fraction = 0.3
    """Fraction of the training over which the KL coefficient grows to 1."""
    kl_coefficient_min: Fraction = 1e-4
    """Initial KL coefficient, and the fraction of the training that it is kept."""
    kl_balancing: bool = True
    """Balance the KL of the groups while the coefficient is below 1 (NVAE appendix A)."""
    max_skipped: PositiveInt = 20
    """Consecutive skipped steps (non-finite loss or gradient) that stop the run."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(f"micro_batch must divide batch ({self.batch}), found {self.micro_batch}")
        if self.norm_weight_initial is not None and self.norm_weight == 0:
            raise ValueError("norm_weight must be above 0 where norm_weight_initial is annealed to it, found 0")
        return self


class NVAESettings(ModelSettings):
    """Stage `nvae`."""

    network: NVAENetworkSettings = NVAENetworkSettings()
    training: NVAETrainingSettings = NVAETrainingSettings()

    @model_validator(mode="after")
    def _warmup_is_shorter_than_training(self) -> Self:
        warmup, epochs = self.training.warmup_epochs, self.training.epochs
        if warmup >= epochs:
            raise ValueError(f"training.warmup_epochs must be below training.epochs ({epochs}), found {warmup}")
        return self
