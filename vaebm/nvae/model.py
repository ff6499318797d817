"""NVAE: a hierarchical VAE with residual normal posteriors (NVAE sections 2 and 3), read from top to bottom.

The encoder goes up from the image to the coarsest scale and remembers its features at every latent group. The decoder
comes down from a learned constant: at each group it proposes the prior of z, the encoder's features there correct it to
the posterior, and z is mixed into the decoder's state. With one latent group in all there is nothing to come down from:
the decoder starts from z.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaebm.config import NVAENetworkSettings
from vaebm.noise import NoiseSource
from vaebm.nvae.cells import ARCHITECTURES, Operation, Resample, ResidualCell
from vaebm.nvae.distributions import Normal
from vaebm.nvae.flows import FlowPair
from vaebm.nvae.layers import NormalizedConv2d
from vaebm.nvae.pixel_distributions import Pixels, logit_channels, pixels_of, quantize
from vaebm.system.checkpoint import load_model
from vaebm.system.device import place
from vaebm.system.errors import UserError

ENCODER = {"stem", "preprocess", "encoder_groups", "encoder_top", "posterior_parameters", "combine_encoder", "flows"}
"""Parts that decoding does without; the others, the learned constant among them, are the decoder's side."""


class Draw(NamedTuple):
    """One latent group of a pass: z ~ q(z_j | x, z_<j), and the prior there."""

    z: Tensor
    """What the decoder gets, (B, latents, h, w)."""
    before: Tensor
    """The posterior's draw, before the flows; where there are none, `z` itself."""
    posterior: Normal
    prior: Normal

    @property
    def log_q(self) -> Tensor:
        """log q(z_j | x, z_<j), elementwise; the flows keep the volume."""
        return self.posterior.log_prob(self.before)

    @property
    def log_p(self) -> Tensor:
        """log p(z_j | z_<j), elementwise."""
        return self.prior.log_prob(self.z)

    @property
    def eps(self) -> Tensor:
        """The noise from which `NVAE.decode` makes this z, elementwise."""
        return (self.z - self.prior.mean) / self.prior.sigma

    @property
    def kl(self) -> Tensor:
        """KL(q ‖ p), elementwise; with flows, where it has no closed form, the estimate log q − log p of this draw."""
        return self.posterior.kl(self.prior) if self.z is self.before else self.log_q - self.log_p


class NVAEOutput(NamedTuple):
    """What a pass through encoder and decoder gives."""

    pixels: Pixels
    """p(x|z), for the z that was drawn."""
    draws: list[Draw]
    """The latent groups in decoding order."""

    @property
    def log_q(self) -> Tensor:
        """log q(z|x), (B,)."""
        return torch.stack([draw.log_q.sum(dim=(1, 2, 3)) for draw in self.draws]).sum(0)

    @property
    def log_p(self) -> Tensor:
        """log p(z), (B,)."""
        return torch.stack([draw.log_p.sum(dim=(1, 2, 3)) for draw in self.draws]).sum(0)

    @property
    def kl(self) -> Tensor:
        """KL(q(z_j | x, z_<j) ‖ p(z_j | z_<j)) of each group, (B, groups)."""
        return torch.stack([draw.kl.sum(dim=(1, 2, 3)) for draw in self.draws], dim=1)


class LatentGroup(nn.Module):
    """One group of latent variables z_j, in the decoder's order: state s above → prior, posterior, state s below.

    Args:
        encoder_channels: of the encoder's features at this scale.
        state_channels: of the decoder's state above, after `cells`; 0 where the decoder starts from z.
        decoder_channels: of the decoder's state below.
        latents: channels of z_j.
        first: whether the prior is N(0, 1.01²) and the posterior depends on the encoder alone.
        cells: residual cells that the state above goes through before.
        residual_posterior: the posterior's parameters are offsets of the prior's.
        flows: pairs of flow cells after the posterior.
    """

    def __init__(
        self,
        encoder_channels: int,
        state_channels: int,
        decoder_channels: int,
        latents: int,
        *,
        first: bool,
        cells: nn.Module,
        residual_posterior: bool,
        flows: int,
    ):
        super().__init__()
        self.residual_posterior = residual_posterior
        self.first = first
        self.cells = cells
        if not first:
            self.prior_parameters = nn.Sequential(nn.ELU(), NormalizedConv2d(state_channels, 2 * latents, 1))
            self.combine_encoder = NormalizedConv2d(state_channels, encoder_channels, 1)
        self.posterior_parameters = NormalizedConv2d(encoder_channels, 2 * latents, 3)
        self.flows = nn.Sequential(*(FlowPair(latents) for _ in range(flows)))
        self.combine_decoder = NormalizedConv2d(state_channels + latents, decoder_channels, 1)

    def prior(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Raw parameters (m, ℓ) of p(z_j | z_<j), each (B, latents, h, w); zeros for the first group."""
        if self.first:
            zeros = state.new_zeros(len(state), self.posterior_parameters.out_channels // 2, *state.shape[2:])
            return zeros, zeros
        m, ell = _full(self.prior_parameters(state)).chunk(2, dim=1)
        return m, ell

    def draw(self, features: Tensor, state: Tensor, eps: Tensor) -> Draw:
        """z_j ~ q(z_j | x, z_<j) from the encoder's features, with noise `eps` (B, latents, h, w)."""
        prior = self.prior(state)
        if not self.first:
            features = features + self.combine_encoder(state)
        m, ell = _full(self.posterior_parameters(features)).chunk(2, dim=1)
        if self.residual_posterior and not self.first:
            m, ell = m + prior[0], ell + prior[1]
        posterior = Normal(m, ell)
        before = posterior.sample(eps)
        z = _full(self.flows(before)) if len(self.flows) else before
        return Draw(z, before, posterior, Normal(*prior))

    def combine(self, state: Tensor, z: Tensor) -> Tensor:
        """The decoder's state with z mixed in."""
        mixed: Tensor = self.combine_decoder(torch.cat([state, z.to(state.dtype)], dim=1))
        return mixed


class NVAE(nn.Module):
    """The hierarchical VAE.

    Args:
        settings: the architecture.
        shape: (C, H, W) of the images; H and W are divisible by 2 to the number of halvings.

    Raises:
        ValueError: the images do not fit the architecture.
    """

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
            raise ValueError(
                f"images of {height}×{width} cannot be halved {halvings} times (preprocess_blocks and scales)"
            )
        if settings.decoder == "logistic_mixture" and channels != 3:
            raise ValueError(
                f"the decoder logistic_mixture is made for 3 colours, the images have {channels} channel(s)"
            )
        operations = ARCHITECTURES[settings.architecture]
        encoder = [settings.channels_encoder * 2 ** (blocks + scale) for scale in range(scales)]
        decoder = [settings.channels_decoder * 2 ** (blocks + scale) for scale in range(scales)]

        self.stem = NormalizedConv2d(channels, settings.channels_encoder, 3)
        self.preprocess = nn.Sequential()
        for block in range(blocks):
            width_in = settings.channels_encoder * 2**block
            for _ in range(settings.preprocess_cells - 1):
                self.preprocess.append(self._cell(width_in, width_in, "none", operations.preprocess))
            self.preprocess.append(self._cell(width_in, 2 * width_in, "down", operations.preprocess))

        # Up: finest scale first, so the topmost group comes last.
        self.encoder_groups = nn.ModuleList()
        for scale, groups in enumerate(settings.groups):
            for group in range(groups):
                cells = nn.Sequential()
                if group == 0 and scale > 0:
                    cells.append(self._cell(encoder[scale - 1], encoder[scale], "down", operations.encoder))
                if not settings.single_group:
                    cells.extend(
                        self._cell(encoder[scale], encoder[scale], "none", operations.encoder)
                        for _ in range(settings.cells_encoder)
                    )
                self.encoder_groups.append(cells)
        self.encoder_top = nn.Sequential(nn.ELU(), NormalizedConv2d(encoder[-1], encoder[-1], 1), nn.ELU())

        # Down: coarsest scale first. With a single group the decoder starts from z: the constant has no channels.
        constant = 0 if settings.single_group else decoder[-1]
        self.prior_constant = nn.Parameter(torch.rand(constant, height // 2**halvings, width // 2**halvings))
        top_down: list[LatentGroup] = []
        self.latent_shapes = []
        for scale in reversed(range(scales)):
            for group in range(settings.groups[scale]):
                first = not top_down
                cells = nn.Sequential()
                if group == 0 and not first:
                    cells.append(self._cell(decoder[scale + 1], decoder[scale], "up", operations.decoder))
                if not first:
                    cells.extend(
                        self._cell(decoder[scale], decoder[scale], "none", operations.decoder)
                        for _ in range(settings.cells_decoder)
                    )
                top_down.append(
                    LatentGroup(
                        encoder[scale],
                        constant if first else decoder[scale],
                        decoder[scale],
                        settings.latents,
                        first=first,
                        cells=cells,
                        residual_posterior=settings.residual_posterior,
                        flows=settings.flows,
                    )
                )
                self.latent_shapes.append(
                    (settings.latents, height // 2 ** (blocks + scale), width // 2 ** (blocks + scale))
                )

        self.groups = nn.ModuleList(top_down)  # type: ignore[assignment]  # torch's lists know no type of element

        self.postprocess = nn.Sequential()
        for block in reversed(range(blocks)):
            width_out = settings.channels_decoder * 2**block
            self.postprocess.append(self._cell(2 * width_out, width_out, "up", operations.postprocess))
            self.postprocess.extend(
                self._cell(width_out, width_out, "none", operations.postprocess)
                for _ in range(settings.postprocess_cells - 1)
            )
        self.pixel_parameters = nn.Sequential(
            nn.ELU(), NormalizedConv2d(settings.channels_decoder, logit_channels(settings, channels), 3)
        )

    def _cell(
        self, channels_in: int, channels_out: int, resample: Resample, operations: Sequence[Operation]
    ) -> ResidualCell:
        return ResidualCell(
            channels_in, channels_out, resample, operations, squeeze_excitation=self.settings.squeeze_excitation
        )

    @property
    def dimensions(self) -> int:
        """Channels × pixels of an image that the likelihood counts; the unit of bits per dimension."""
        channels, height, width = self.shape
        return channels * (height - 2 * self.settings.crop) * (width - 2 * self.settings.crop)

    def decoder_parameters(self) -> list[nn.Parameter]:
        """The parameters that `decode` uses."""
        return [parameter for name, parameter in self.named_parameters() if not ENCODER & set(name.split("."))]

    def as_input(self, images: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Grey levels (B, C, H, W) uint8 as what the network sees, and its likelihood is of: (B, C, H, W) in [0, 1].

        The depth is reduced to `bits`; for the Bernoulli decoder each pixel is drawn white with its grey level's probability.

        Args:
            noise: for that draw; the other decoders need none.
        """
        x = quantize(images.to(self.prior_constant.device, self.prior_constant.dtype) / 255.0, self.settings.bits)
        if self.settings.decoder == "bernoulli":
            if noise is None:
                raise ValueError("the Bernoulli decoder's input is drawn: expected a NoiseSource, found None")
            (threshold,) = noise.uniform([x.shape[1:]], device=x.device, dtype=x.dtype)
            return (threshold < x).to(x.dtype)
        return x

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's features for images (B, C, H, W) in [0, 1], one tensor per group in decoding order."""
        state = self.preprocess(self.stem(2.0 * x - 1.0))
        features = []
        for cells in self.encoder_groups:
            state = cells(state)
            features.append(state)
        features[-1] = self.encoder_top(state)
        return features[::-1]

    def forward(
        self, x: Tensor, eps: Sequence[Tensor] | None = None, noise: NoiseSource | None = None, step: int = 0
    ) -> NVAEOutput:
        """Reconstruct images through a draw of the posterior (NVAE eq. 1 and 2).

        Args:
            x: images (B, C, H, W) in [0, 1].
            eps: noise of the posterior, one (B, latents, h, w) per group in decoding order; drawn from `noise` if None.
            noise: source of the noise where `eps` is None; `step` selects the draw.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(f"expected images (B, {', '.join(map(str, self.shape))}), found {tuple(x.shape)}")
        eps = self._checked(self._noise(x, eps, noise, step))
        draws = []
        state = self.prior_constant.expand(len(x), -1, -1, -1)
        for group, features, each in zip(self.groups, self.encode(x), eps, strict=True):
            state = group.cells(state)
            draw = group.draw(features, state, each)
            draws.append(draw)
            state = group.combine(state, draw.z)
        return NVAEOutput(self._pixels(state), draws)

    def decode(self, eps: Sequence[Tensor], temperature: float = 1.0) -> tuple[Pixels, Tensor]:
        """The deterministic map z = T(ε) and the pixels' distribution (VAEBM section 3.2).

        Args:
            eps: standard normal noise, one (B, latents, h, w) per group in decoding order.
            temperature: scales the priors' σ.

        Returns:
            p(x|z), and log p(z) at that temperature, (B,).
        """
        log_p = []
        state = self.prior_constant.expand(len(self._checked(eps)[0]), -1, -1, -1)
        for group, draw in zip(self.groups, eps, strict=True):
            state = group.cells(state)
            prior = Normal(*group.prior(state), temperature)
            z = prior.sample(draw)
            log_p.append(prior.log_prob(z).sum(dim=(1, 2, 3)))
            state = group.combine(state, z)
        return self._pixels(state), torch.stack(log_p).sum(0)

    def _pixels(self, state: Tensor) -> Pixels:
        return pixels_of(self.settings, _full(self.pixel_parameters(self.postprocess(state))))

    def _checked(self, eps: Sequence[Tensor]) -> Sequence[Tensor]:
        found = [tuple(each.shape[1:]) for each in eps]
        if found != self.latent_shapes:
            raise ValueError(
                f"expected noise of the shapes {self.latent_shapes}, one for each latent group, found {found}"
            )
        return eps

    def _noise(self, x: Tensor, eps: Sequence[Tensor] | None, noise: NoiseSource | None, step: int) -> Sequence[Tensor]:
        if eps is not None:
            return eps
        if noise is None:
            raise ValueError("forward needs eps, one tensor per latent group, or a NoiseSource to draw them from")
        return noise.normal(self.latent_shapes, step=step, device=x.device, dtype=x.dtype)


def _full(x: Tensor) -> Tensor:
    """Parameters of distributions in full precision, whatever a convolution under autocast gave."""
    return x.float() if x.dtype == torch.bfloat16 else x


def load_nvae(path: Path | str, device: torch.device | str = "cpu") -> NVAE:
    """The trained NVAE in a model file: frozen, in eval mode, in single precision.

    Raises:
        UserError: no such file, or not an NVAE of this version.
    """
    content = load_model(path, "nvae")
    try:
        nvae = NVAE(NVAENetworkSettings.model_validate(content["network"]), content["shape"])
        nvae.load_state_dict(content["weights"])
    except (KeyError, ValueError, RuntimeError):
        raise UserError(
            f"{path}: expected an NVAE of this version, found one with other settings or weights; train or convert it again"
        ) from None
    return place(nvae.requires_grad_(False).eval(), torch.device(device))
