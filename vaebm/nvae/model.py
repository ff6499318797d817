"""NVAE: a hierarchical VAE with residual normal posteriors (NVAE sections 2 and 3).

The encoder maps the image to coarser scales and keeps its features at every latent group. The decoder starts from a
learned constant at the coarsest scale. At each group it computes the prior of z, which the encoder's features turn into
the posterior. z is then combined into the decoder's state. With a single latent group the decoder starts from z.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vaebm.config import NVAENetworkSettings
from vaebm.noise import NoiseSource, check_source
from vaebm.nvae.cells import ARCHITECTURES, ResidualCell
from vaebm.nvae.distributions import Normal, full_precision
from vaebm.nvae.latent_group import Draw, LatentGroup
from vaebm.nvae.layers import NormalizedConv2d
from vaebm.nvae.pixel_distributions import Pixels, logit_channels, pixels_of, quantize
from vaebm.system.checkpoint import load_model, of_this_version
from vaebm.system.device import freeze
from vaebm.system.errors import UserError, check_number
from vaebm.system.shapes import GreyImages, Images, Latents, PerGroup, PerImage, check_images, check_noise

ENCODER = {"stem", "preprocess", "encoder_groups", "encoder_top", "posterior_parameters", "combine_encoder", "flows"}
"""Submodules used only by the encoder."""


class NVAEOutput(NamedTuple):
    """Result of a pass through encoder and decoder."""

    pixels: Pixels
    """p(x|z) for the drawn z."""
    draws: list[Draw]
    """The latent groups in decoding order."""

    @property
    def log_q(self) -> PerImage:
        """log q(z|x), (B,)."""
        return torch.stack([draw.log_q.sum(dim=(1, 2, 3)) for draw in self.draws]).sum(0)

    @property
    def log_p(self) -> PerImage:
        """log p(z), (B,)."""
        return torch.stack([draw.log_p.sum(dim=(1, 2, 3)) for draw in self.draws]).sum(0)

    @property
    def kl(self) -> PerGroup:
        """KL(q(z_j | x, z_<j) ‖ p(z_j | z_<j)) of each group, (B, groups)."""
        return torch.stack([draw.kl.sum(dim=(1, 2, 3)) for draw in self.draws], dim=1)


@runtime_checkable
class LatentDecoder(Protocol):
    """What a chain moves through: noise → distribution of images."""

    def decode(self, eps: Sequence[Latents]) -> tuple[Pixels, PerImage]:
        """p(x|z) for the noise of each latent group, and log p(z), (B,)."""


class NVAE(nn.Module):
    """The hierarchical VAE.

    Args:
        settings: architecture.
        shape: (C, H, W) of the images; H and W are multiples of 2^halvings.

    Raises:
        UserError: the images do not fit the architecture.
    """

    encoder_groups: Sequence[nn.Sequential]
    """Cells of the encoder before each latent group, finest group first."""
    groups: Sequence[LatentGroup]
    """Latent groups in decoding order."""
    latent_shapes: list[tuple[int, int, int]]
    """(latents, h, w) of each group, in decoding order."""

    def __init__(self, settings: NVAENetworkSettings, shape: Sequence[int]):
        super().__init__()
        channels, height, width = shape
        self.settings, self.shape = settings, (channels, height, width)
        scales, blocks, halvings = len(settings.groups), settings.preprocess_blocks, settings.halvings
        if height % 2**halvings or width % 2**halvings:
            raise UserError(
                f"images of {height}×{width} cannot be halved {halvings} times (preprocess_blocks and scales)"
            )
        if settings.decoder == "logistic_mixture" and channels != 3:
            raise UserError(
                f"the decoder logistic_mixture is made for 3 colours, the images have {channels} channel(s)"
            )
        operations = ARCHITECTURES[settings.architecture]
        encoder = [settings.channels_encoder * 2 ** (blocks + scale) for scale in range(scales)]
        decoder = [settings.channels_decoder * 2 ** (blocks + scale) for scale in range(scales)]

        cell = partial(ResidualCell, squeeze_excitation=settings.squeeze_excitation)

        self.stem = NormalizedConv2d(channels, settings.channels_encoder, 3)
        self.preprocess = nn.Sequential()
        for block in range(blocks):
            features = settings.channels_encoder * 2**block
            for _ in range(settings.preprocess_cells - 1):
                self.preprocess.append(cell(features, features, "none", operations.preprocess))
            self.preprocess.append(cell(features, 2 * features, "down", operations.preprocess))

        # Bottom-up: the finest scale first.
        encoder_groups: list[nn.Sequential] = []
        for scale, groups in enumerate(settings.groups):
            for group in range(groups):
                cells = nn.Sequential()
                if group == 0 and scale > 0:
                    cells.append(cell(encoder[scale - 1], encoder[scale], "down", operations.encoder))
                for _ in range(0 if settings.single_group else settings.cells_encoder):
                    cells.append(cell(encoder[scale], encoder[scale], "none", operations.encoder))
                encoder_groups.append(cells)
        self.encoder_groups = nn.ModuleList(encoder_groups)  # type: ignore[assignment]  # ModuleList is not generic
        self.encoder_top = nn.Sequential(nn.ELU(), NormalizedConv2d(encoder[-1], encoder[-1], 1), nn.ELU())

        # Top-down: the coarsest scale first. A decoder that starts from z has a constant without channels.
        constant = 0 if settings.single_group else decoder[-1]
        self.prior_constant = nn.Parameter(torch.rand(constant, height // 2**halvings, width // 2**halvings))
        top_down: list[LatentGroup] = []
        self.latent_shapes = []
        for scale in reversed(range(scales)):
            for group in range(settings.groups[scale]):
                first = not top_down
                cells = nn.Sequential()
                if group == 0 and not first:
                    cells.append(cell(decoder[scale + 1], decoder[scale], "up", operations.decoder))
                for _ in range(0 if first else settings.cells_decoder):
                    cells.append(cell(decoder[scale], decoder[scale], "none", operations.decoder))
                above = constant if first else decoder[scale]
                top_down.append(LatentGroup(settings, encoder[scale], above, decoder[scale], first, cells))
                factor = 2 ** (blocks + scale)
                self.latent_shapes.append((settings.latents, height // factor, width // factor))
        self.groups = nn.ModuleList(top_down)  # type: ignore[assignment]

        self.postprocess = nn.Sequential()
        for block in reversed(range(blocks)):
            features = settings.channels_decoder * 2**block
            self.postprocess.append(cell(2 * features, features, "up", operations.postprocess))
            for _ in range(settings.postprocess_cells - 1):
                self.postprocess.append(cell(features, features, "none", operations.postprocess))
        logits = NormalizedConv2d(settings.channels_decoder, logit_channels(settings, channels), 3)
        self.pixel_parameters = nn.Sequential(nn.ELU(), logits)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.prior_constant.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.prior_constant.dtype

    @property
    def dimensions(self) -> int:
        """Number of values of an image without its padding, for bits per dimension."""
        channels, height, width = self.shape
        return channels * (height - 2 * self.settings.crop) * (width - 2 * self.settings.crop)

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Parameters used by `decode`."""
        return [parameter for name, parameter in self.named_parameters() if not ENCODER & set(name.split("."))]

    def as_input(self, images: Images | GreyImages, noise: NoiseSource | None = None) -> Images:
        """Convert images to the network's input (B, C, H, W) in [0, 1], of the weights' type and device.

        The depth is reduced to `bits`. For the Bernoulli decoder a pixel is drawn white with probability x.

        Args:
            images: (B, C, H, W), grey levels uint8, or any floating-point type in [0, 1].
            noise: source of the Bernoulli draw, one index per image; not used by other decoders.

        Raises:
            UserError: images of another shape, type or range, none at all, or a Bernoulli decoder without `noise`.
        """
        check_images("images", images, self.shape)
        x = images.to(self.device, self.dtype)
        x = quantize(x if images.is_floating_point() else x / 255.0, self.settings.bits)
        if self.settings.decoder == "bernoulli":
            if noise is None:
                raise UserError("noise: expected a NoiseSource for the Bernoulli decoder, found None")
            check_source(noise, len(x))
            (threshold,) = noise.uniform([x.shape[1:]], device=x.device, dtype=x.dtype)
            return (threshold < x).to(x.dtype)
        return x

    def encode(self, x: Images) -> list[Latents]:
        """Encoder features of images (B, C, H, W) in [0, 1], one tensor per group in decoding order.

        Raises:
            UserError: images of another shape or type.
        """
        check_images("x", x, self.shape, raw=False)
        state = self.preprocess(self.stem(2.0 * x - 1.0))
        features = []
        for cells in self.encoder_groups:
            state = cells(state)
            features.append(state)
        features[-1] = self.encoder_top(state)
        return features[::-1]

    def forward(
        self,
        x: Images,
        eps: Sequence[Latents] | None = None,
        noise: NoiseSource | None = None,
        step: int = 0,
        features: Sequence[Latents] | None = None,
    ) -> NVAEOutput:
        """Reconstruct images through a draw of the posterior (NVAE eq. 1 and 2).

        Args:
            x: images (B, C, H, W) in [0, 1], of the weights' type (`as_input`).
            eps: noise of the posterior, one (B, latents, h, w) per group in decoding order; None: draw it.
            noise: source of the noise if `eps` is None, one index per image.
            step: number of the draw from `noise`.
            features: the output of `encode`, which several draws share; None: compute it.

        Raises:
            UserError: wrong shapes of images or noise, neither `eps` nor `noise`, or features of other images.
        """
        draws, state = self.posterior(x, eps, noise, step, features)
        return NVAEOutput(self._pixels(state), draws)

    def posterior(
        self,
        x: Images,
        eps: Sequence[Latents] | None = None,
        noise: NoiseSource | None = None,
        step: int = 0,
        features: Sequence[Latents] | None = None,
    ) -> tuple[list[Draw], Latents]:
        """The draw of `forward`, without the pixels, and the decoder's last state; arguments and errors are alike."""
        check_images("x", x, self.shape, raw=False)
        if eps is None:
            if noise is None:
                raise UserError("eps, noise: expected one tensor per latent group, or a NoiseSource, found neither")
            check_source(noise, len(x))
            eps = noise.normal(self.latent_shapes, step=step, device=x.device, dtype=x.dtype)
        check_noise(eps, self.latent_shapes, len(x))
        draws: list[Draw] = []
        state = self.prior_constant.expand(len(x), -1, -1, -1)
        if features is None:
            features = self.encode(x)
        elif (found := [len(each) for each in features]) != [len(x)] * len(self.groups):
            expected = f"the output of encode for these {len(x)} images, {len(self.groups)} tensors"
            raise UserError(f"features: expected {expected}, found tensors of {found} images")
        for group, encoded, each in zip(self.groups, features, eps, strict=True):
            state = group.cells(state)
            draw = group.draw(encoded, state, each)
            draws.append(draw)
            state = group.combine(state, draw.z)
        return draws, state

    def decode(self, eps: Sequence[Latents], temperature: float = 1.0) -> tuple[Pixels, PerImage]:
        """Map noise ε_z to latents z = μ + σ ε_z, group by group, and to the pixels' distribution (VAEBM section 3.2).

        Args:
            eps: standard normal noise, one (B, latents, h, w) per group in decoding order.
            temperature: factor of the priors' σ, from 0; at 0 log p(z) is undefined (NaN).

        Returns:
            p(x|z), and log p(z) at that temperature, (B,).

        Raises:
            UserError: wrong shapes of the noise, or a negative temperature.
        """
        check_noise(eps, self.latent_shapes)
        check_number("temperature", temperature, 0, whole=False)
        log_p = []
        state = self.prior_constant.expand(len(eps[0]), -1, -1, -1)
        for group, each in zip(self.groups, eps, strict=True):
            state = group.cells(state)
            prior = Normal(*group.prior(state), temperature)
            z = prior.sample(each)
            log_p.append(prior.log_prob(z).sum(dim=(1, 2, 3)))
            state = group.combine(state, z)
        return self._pixels(state), torch.stack(log_p).sum(0)

    def _pixels(self, state: Tensor) -> Pixels:
        return pixels_of(self.settings, full_precision(self.pixel_parameters(self.postprocess(state))))


def load_nvae(path: Path | str, device: torch.device | str = "cpu") -> NVAE:
    """Load the NVAE of a model file: frozen, in eval mode, in single precision.

    Raises:
        UserError: the file is missing, or not an NVAE of this version, or torch cannot use the device.
    """
    content = load_model(path, "nvae")
    with of_this_version(path, "an NVAE"):
        nvae = NVAE(NVAENetworkSettings.model_validate(content["network"]), content["shape"])
        nvae.load_state_dict(content["weights"])
    return freeze(nvae, device)


def load_frozen(path: Path, shape: Sequence[int], device: torch.device) -> tuple[NVAE, str]:
    """Load the NVAE on which another network trains, for images of `shape` (C, H, W), and the hash of its weights.

    Raises:
        UserError: as for `load_nvae`, or the NVAE is for other images.
    """
    nvae, weights = load_nvae(path, device), load_model(path, "nvae")["hash"]
    if nvae.shape != tuple(shape):
        raise UserError(f"{path}: expected an NVAE of images {tuple(shape)}, found one of {nvae.shape}")
    return nvae, weights


def check_decoder(nvae: LatentDecoder, where: Path | str) -> None:
    """Raise a UserError that begins with `where` if the decoder of an NVAE is not Gaussian, as an energy needs."""
    if isinstance(nvae, NVAE) and nvae.settings.decoder != "normal":
        raise UserError(
            f"{where}: expected an NVAE with the decoder normal, which the chain needs, found {nvae.settings.decoder}"
        )
