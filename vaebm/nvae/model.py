"""NVAE: a hierarchical VAE with residual normal posteriors (NVAE sections 2 and 3), read from top to bottom.

The encoder goes up from the image to the coarsest scale and remembers its features at every latent group. The decoder
comes down from a learned constant: at each group it proposes the prior of z, the encoder's features there correct it to
the posterior, and z is mixed into the decoder's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaebm.checkpoint import load_model
from vaebm.config import NVAENetworkSettings
from vaebm.noise import NoiseSource
from vaebm.nvae.cells import NormalizedConv2d, Resample, ResidualCell
from vaebm.nvae.distributions import Normal, PixelNormal
from vaebm.runtime import place


class Draw(NamedTuple):
    """One latent group of a pass: z ~ q(z_j | x, z_<j), and the prior there."""

    z: Tensor
    posterior: Normal
    prior: Normal


class NVAEOutput(NamedTuple):
    """What a pass through encoder and decoder gives."""

    pixels: PixelNormal
    """p(x|z), for the z that was drawn."""
    draws: list[Draw]
    """The latent groups in decoding order."""

    @property
    def log_q(self) -> Tensor:
        """log q(z|x), (B,)."""
        return torch.stack([draw.posterior.log_prob(draw.z).sum(dim=(1, 2, 3)) for draw in self.draws]).sum(0)

    @property
    def log_p(self) -> Tensor:
        """log p(z), (B,)."""
        return torch.stack([draw.prior.log_prob(draw.z).sum(dim=(1, 2, 3)) for draw in self.draws]).sum(0)

    @property
    def kl(self) -> Tensor:
        """KL(q(z_j | x, z_<j) ‖ p(z_j | z_<j)) of each group, (B, groups)."""
        return torch.stack([draw.posterior.kl(draw.prior).sum(dim=(1, 2, 3)) for draw in self.draws], dim=1)


class LatentGroup(nn.Module):
    """One group of latent variables z_j, in the decoder's order: state s above → prior, posterior, state s below."""

    def __init__(self, encoder_channels: int, decoder_channels: int, latents: int, *, first: bool, cells: nn.Module, residual_posterior: bool):
        super().__init__()
        self.residual_posterior = residual_posterior
        self.first = first
        self.cells = cells
        if not first:
            self.prior_parameters = nn.Sequential(nn.ELU(), NormalizedConv2d(decoder_channels, 2 * latents, 1))
            self.combine_encoder = NormalizedConv2d(decoder_channels, encoder_channels, 1)
        self.posterior_parameters = NormalizedConv2d(encoder_channels, 2 * latents, 3)
        self.combine_decoder = NormalizedConv2d(decoder_channels + latents, decoder_channels, 1)

    def prior(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Raw parameters (m, ℓ) of p(z_j | z_<j), each (B, latents, h, w); zeros for the first group."""
        if self.first:
            zeros = state.new_zeros(len(state), self.posterior_parameters.out_channels // 2, *state.shape[2:])
            return zeros, zeros
        m, ell = self.prior_parameters(state).chunk(2, dim=1)
        return m, ell

    def posterior(self, features: Tensor, state: Tensor, prior: tuple[Tensor, Tensor]) -> Normal:
        """q(z_j | x, z_<j) from the encoder's features; offsets of the prior's parameters if residual."""
        if not self.first:
            features = features + self.combine_encoder(state)
        m, ell = self.posterior_parameters(features).chunk(2, dim=1)
        if self.residual_posterior and not self.first:
            m, ell = m + prior[0], ell + prior[1]
        return Normal(m, ell)

    def combine(self, state: Tensor, z: Tensor) -> Tensor:
        """The decoder's state with z mixed in."""
        mixed: Tensor = self.combine_decoder(torch.cat([state, z], dim=1))
        return mixed


class NVAE(nn.Module):
    """The hierarchical VAE.

    Args:
        settings: the architecture.
        shape: (C, H, W) of the images; H and W are divisible by 2 to the number of halvings.

    Raises:
        ValueError: the images are too small for the architecture.
    """

    groups: Sequence[LatentGroup]
    """Latent groups in decoding order."""
    latent_shapes: list[tuple[int, int, int]]
    """(latents, h, w) of each group, in decoding order."""

    def __init__(self, settings: NVAENetworkSettings, shape: Sequence[int]):
        super().__init__()
        channels, height, width = shape
        self.settings, self.shape = settings, (channels, height, width)
        scales, blocks = len(settings.groups), settings.preprocess_blocks
        halvings = blocks + scales - 1
        if height % 2**halvings or width % 2**halvings:
            raise ValueError(f"images of {height}×{width} cannot be halved {halvings} times (preprocess_blocks and scales)")
        encoder = [settings.channels_encoder * 2 ** (blocks + scale) for scale in range(scales)]
        decoder = [settings.channels_decoder * 2 ** (blocks + scale) for scale in range(scales)]

        self.stem = NormalizedConv2d(channels, settings.channels_encoder, 3)
        self.preprocess = nn.Sequential()
        for block in range(blocks):
            width_in = settings.channels_encoder * 2**block
            for _ in range(settings.preprocess_cells - 1):
                self.preprocess.append(self._cell(width_in, width_in, "none"))
            self.preprocess.append(self._cell(width_in, 2 * width_in, "down"))

        # Up: finest scale first, so the topmost group comes last.
        self.encoder_groups = nn.ModuleList()
        for scale, groups in enumerate(settings.groups):
            for group in range(groups):
                cells = nn.Sequential()
                if group == 0 and scale > 0:
                    cells.append(self._cell(encoder[scale - 1], encoder[scale], "down"))
                cells.extend(self._cell(encoder[scale], encoder[scale], "none") for _ in range(settings.cells_encoder))
                self.encoder_groups.append(cells)
        self.encoder_top = nn.Sequential(nn.ELU(), NormalizedConv2d(encoder[-1], encoder[-1], 1), nn.ELU())

        # Down: coarsest scale first.
        self.prior_constant = nn.Parameter(torch.rand(decoder[-1], height // 2**halvings, width // 2**halvings))
        top_down: list[LatentGroup] = []
        self.latent_shapes = []
        for scale in reversed(range(scales)):
            for group in range(settings.groups[scale]):
                first = not top_down
                cells = nn.Sequential()
                if group == 0 and not first:
                    cells.append(self._cell(decoder[scale + 1], decoder[scale], "up", expansion=6))
                if not first:
                    cells.extend(self._cell(decoder[scale], decoder[scale], "none", expansion=6) for _ in range(settings.cells_decoder))
                top_down.append(
                    LatentGroup(encoder[scale], decoder[scale], settings.latents, first=first, cells=cells, residual_posterior=settings.residual_posterior)
                )
                self.latent_shapes.append((settings.latents, height // 2 ** (blocks + scale), width // 2 ** (blocks + scale)))

        self.groups = nn.ModuleList(top_down)  # type: ignore[assignment]  # torch's lists know no type of element

        self.postprocess = nn.Sequential()
        for block in reversed(range(blocks)):
            width_out = settings.channels_decoder * 2**block
            self.postprocess.append(self._cell(2 * width_out, width_out, "up", expansion=3))
            self.postprocess.extend(self._cell(width_out, width_out, "none", expansion=3) for _ in range(settings.postprocess_cells - 1))
        self.pixel_parameters = nn.Sequential(nn.ELU(), NormalizedConv2d(settings.channels_decoder, 2 * channels, 3))

    def _cell(self, channels_in: int, channels_out: int, resample: Resample, expansion: int | None = None) -> ResidualCell:
        """A residual cell; inverted residuals (`expansion`) stand in the decoder of `res_mbconv` only."""
        if self.settings.architecture == "res_bnswish":
            expansion = None
        return ResidualCell(channels_in, channels_out, resample, expansion=expansion, squeeze_excitation=self.settings.squeeze_excitation)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's features for images (B, C, H, W) in [0, 1], one tensor per group in decoding order."""
        state = self.preprocess(self.stem(2.0 * x - 1.0))
        features = []
        for cells in self.encoder_groups:
            state = cells(state)
            features.append(state)
        features[-1] = self.encoder_top(state)
        return features[::-1]

    def forward(self, x: Tensor, eps: Sequence[Tensor] | None = None, noise: NoiseSource | None = None, step: int = 0) -> NVAEOutput:
        """Reconstruct images through a draw of the posterior (NVAE eq. 1 and 2).

        Args:
            x: images (B, C, H, W) in [0, 1].
            eps: noise of the posterior, one (B, latents, h, w) per group in decoding order; drawn from `noise` if None.
            noise: source of the noise where `eps` is None; `step` selects the draw.
        """
        eps = self._noise(x, eps, noise, step)
        draws = []
        state = self.prior_constant.expand(len(x), -1, -1, -1)
        for group, features, draw in zip(self.groups, self.encode(x), eps, strict=True):
            state = group.cells(state)
            parameters = group.prior(state)
            posterior = group.posterior(features, state, parameters)
            z = posterior.sample(draw)
            draws.append(Draw(z, posterior, Normal(*parameters)))
            state = group.combine(state, z)
        return NVAEOutput(self._pixels(state), draws)

    def decode(self, eps: Sequence[Tensor], temperature: float = 1.0) -> tuple[PixelNormal, Tensor]:
        """The deterministic map z = T(ε) and the pixels' distribution (VAEBM section 3.2).

        Args:
            eps: noise of the prior, one (B, latents, h, w) per group in decoding order.
            temperature: scales the prior's σ.

        Returns:
            p(x|z), and the log density of z under the tempered prior, (B,).
        """
        log_p = []
        state = self.prior_constant.expand(len(eps[0]), -1, -1, -1)
        for group, draw in zip(self.groups, eps, strict=True):
            state = group.cells(state)
            prior = Normal(*group.prior(state), temperature)
            z = prior.sample(draw)
            log_p.append(prior.log_prob(z).sum(dim=(1, 2, 3)))
            state = group.combine(state, z)
        return self._pixels(state), torch.stack(log_p).sum(0)

    def _pixels(self, state: Tensor) -> PixelNormal:
        return PixelNormal(self.pixel_parameters(self.postprocess(state)), self.settings.pixel_log_sigma_floor)

    def _noise(self, x: Tensor, eps: Sequence[Tensor] | None, noise: NoiseSource | None, step: int) -> Sequence[Tensor]:
        if eps is not None:
            return eps
        if noise is None:
            raise ValueError("forward needs eps, one tensor per latent group, or a NoiseSource to draw them from")
        return noise.normal(self.latent_shapes, step=step, device=x.device, dtype=x.dtype)


def load_nvae(path: Path | str, device: torch.device | str = "cpu") -> NVAE:
    """The trained NVAE in a model file: frozen, in eval mode.

    Raises:
        UserError: no such file, or not an NVAE.
    """
    content = load_model(path, "nvae")
    nvae = NVAE(NVAENetworkSettings.model_validate(content["network"]), content["shape"])
    nvae.load_state_dict(content["weights"])
    return place(nvae.requires_grad_(False).eval(), torch.device(device))
