"""Settings of stage `nvae`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vaebm.config.base import Fraction, NonNegativeFloat, NonNegativeInt, Settings, Several

Architecture = Literal[
    "res_mbconv", "res53_mbconv", "res35_mbconv", "res55_mbconv", "mbconv_res",
    "mbconv_sep", "mbconv_sep11", "mbconv_den", "res_bnswish", "res_bnelu", "res_elu",
]  # fmt: skip


class NVAENetworkSettings(Settings):
    """Architecture of the hierarchical VAE (NVAE section 3)."""

    channels_encoder: Several
    """Channels of the encoder after its stem; doubled at every down-sampling."""
    channels_decoder: Several
    """Channels of the decoder at the resolution of the images; doubled at every down-sampling."""
    groups: Annotated[list[PositiveInt], Field(min_length=1)]
    """Latent groups at each scale, finest scale first. One group in all makes a VAE without the hierarchy's towers."""
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
    architecture: Architecture = "res_mbconv"
    """Operations of the residual cells, by the published names (`nvae.cells.ARCHITECTURES`); `res_mbconv` is the paper's."""
    squeeze_excitation: bool = True
    """Gate the channels of each residual branch by their means."""
    residual_posterior: bool = True
    """Posterior parameters are offsets of the prior's (NVAE section 3.2)."""
    flows: NonNegativeInt = 0
    """Pairs of normalising-flow cells after the posterior of each group (NVAE section 3.2)."""
    decoder: Literal["normal", "logistic_mixture", "bernoulli"] = "normal"
    """Distribution of the pixels: `normal` for VAEBM, discretised logistics or black and white for the original NVAE."""
    mixtures: Several = 10
    """Components of `logistic_mixture`."""
    bits: Annotated[int, Field(ge=1, le=8)] = 8
    """Depth that the images are reduced to before the network sees them, bits per channel."""
    crop: NonNegativeInt = 0
    """Rows and columns at each border that only pad the image: left out of the likelihood."""
    pixel_log_sigma_floor: float | None = None
    """Smallest log σ of the decoder `normal`, on the scale [−1, 1]; none in the paper."""

    @property
    def single_group(self) -> bool:
        """Whether there is one latent group in all."""
        return self.groups == [1]

    @property
    def halvings(self) -> int:
        """How often the resolution of the images is halved on the way to the coarsest scale."""
        return self.preprocess_blocks + len(self.groups) - 1

    @model_validator(mode="after")
    def _channels_fit_the_architecture(self) -> NVAENetworkSettings:
        channels = {"channels_encoder": self.channels_encoder, "channels_decoder": self.channels_decoder}
        if self.single_group and self.channels_encoder != self.channels_decoder:
            raise ValueError(
                f"with a single latent group channels_encoder must equal channels_decoder, found {channels}"
            )
        if self.architecture == "mbconv_den" and any(width % 8 for width in channels.values()):
            raise ValueError(
                f"architecture mbconv_den has convolutions in 8 groups: channels must be divisible by 8, found {channels}"
            )
        return self


class NVAETrainingSettings(Settings):
    """Training of the NVAE (NVAE sections 3.3 and 4)."""

    epochs: PositiveInt
    """Passes over the training images."""
    batch: Several
    """Images per step, over all processes."""
    flip: bool = False
    """Turn each training image left to right with probability one half, as the paper does on all its data sets but the digits."""
    micro_batch: Several | None = None
    """Images per forward pass, over all processes: what batch norms and KL balancing see; the gradients of a batch's parts
    are accumulated. None: the whole batch at once. A part of `batch`."""
    recompute: bool = False
    """Keep the inputs of the residual cells only, and compute a cell again when the backward pass comes to it: for large images,
    several times less memory for about a third more time. The results are the same."""
    precision: Literal["float32", "tf32", "bfloat16", "float64"] = "float32"
    """`tf32`: an NVIDIA GPU rounds the factors of convolutions and products to ten bits. `bfloat16`: so, and convolutions are
    computed in bfloat16 (autocast). `float64`: to compare."""
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
    norm_weight_initial: PositiveFloat | None = None
    """λ at the start, annealed to `norm_weight` while the KL coefficient grows; None: constant."""
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

    @model_validator(mode="after")
    def _parts_fit(self) -> NVAETrainingSettings:
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(f"micro_batch must divide batch ({self.batch}), found {self.micro_batch}")
        if self.norm_weight_initial is not None and self.norm_weight == 0:
            raise ValueError("norm_weight must be above 0 where norm_weight_initial is annealed to it, found 0")
        return self


class NVAESettings(Settings):
    """Stage `nvae`."""

    network: NVAENetworkSettings
    training: NVAETrainingSettings

    @model_validator(mode="after")
    def _warmup_is_shorter_than_training(self) -> NVAESettings:
        if self.training.warmup_epochs >= self.training.epochs:
            raise ValueError(
                f"training.warmup_epochs must be below training.epochs ({self.training.epochs}), found {self.training.warmup_epochs}"
            )
        return self
