"""One group of latent variables: its prior, its residual normal posterior, and its draws (NVAE section 3.2)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaebm.config import NVAENetworkSettings
from vaebm.nvae.distributions import Normal, full_precision
from vaebm.nvae.flows import FlowPair
from vaebm.nvae.layers import NormalizedConv2d


class Draw(NamedTuple):
    """A draw z ~ q(z_j | x, z_<j) of one latent group, with its prior."""

    z: Tensor
    """Input of the decoder, (B, latents, h, w)."""
    before: Tensor
    """The posterior's draw before the flows; without flows `z` itself."""
    posterior: Normal
    """q(z_j | x, z_<j), before the flows."""
    prior: Normal
    """p(z_j | z_<j)."""

    @property
    def log_q(self) -> Tensor:
        """log q(z_j | x, z_<j), elementwise; the flows preserve volume."""
        return self.posterior.log_prob(self.before)

    @property
    def log_p(self) -> Tensor:
        """log p(z_j | z_<j), elementwise."""
        return self.prior.log_prob(self.z)

    @property
    def eps(self) -> Tensor:
        """Noise from which `NVAE.decode` computes this z, elementwise."""
        return (self.z - self.prior.mean) / self.prior.sigma

    @property
    def kl(self) -> Tensor:
        """KL(q ‖ p), elementwise; with flows the single-draw estimate log q − log p."""
        return self.posterior.kl(self.prior) if self.z is self.before else self.log_q - self.log_p


class LatentGroup(nn.Module):
    """One group of latent variables z_j: from the decoder's state above to prior, posterior and the state below.

    Args:
        state_channels: channels of the state above, after `cells`; 0 if the decoder starts from z.
        first: the prior is N(0, 1.01²), and the posterior depends on the encoder only.
        cells: residual cells that transform the state above.
    """

    def __init__(
        self,
        settings: NVAENetworkSettings,
        encoder_channels: int,
        state_channels: int,
        decoder_channels: int,
        first: bool,
        cells: nn.Sequential,
    ):
        super().__init__()
        self.first, self.cells, latents = first, cells, settings.latents
        self.residual_posterior = settings.residual_posterior and not first
        if not first:
            self.prior_parameters = nn.Sequential(nn.ELU(), NormalizedConv2d(state_channels, 2 * latents, 1))
            self.combine_encoder = NormalizedConv2d(state_channels, encoder_channels, 1)
        self.posterior_parameters = NormalizedConv2d(encoder_channels, 2 * latents, 3)
        self.flows = nn.Sequential(*(FlowPair(latents) for _ in range(settings.flows)))
        self.combine_decoder = NormalizedConv2d(state_channels + latents, decoder_channels, 1)

    def prior(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Raw parameters (m, ℓ) of p(z_j | z_<j), each (B, latents, h, w); zeros for the first group."""
        if self.first:
            zeros = state.new_zeros(len(state), self.posterior_parameters.out_channels // 2, *state.shape[2:])
            return zeros, zeros
        m, ell = full_precision(self.prior_parameters(state)).chunk(2, dim=1)
        return m, ell

    def draw(self, features: Tensor, state: Tensor, eps: Tensor) -> Draw:
        """Draw z_j ~ q(z_j | x, z_<j) with noise `eps` (B, latents, h, w)."""
        prior = self.prior(state)
        if not self.first:
            features = features + self.combine_encoder(state)
        m, ell = full_precision(self.posterior_parameters(features)).chunk(2, dim=1)
        if self.residual_posterior:  # offsets from the prior
            m, ell = m + prior[0], ell + prior[1]
        posterior = Normal(m, ell)
        before = posterior.sample(eps)
        z = full_precision(self.flows(before)) if len(self.flows) else before
        return Draw(z, before, posterior, Normal(*prior))

    def combine(self, state: Tensor, z: Tensor) -> Tensor:
        """The state below: a 1×1 convolution of the state above and z."""
        return self.combine_decoder(torch.cat([state, z.to(state.dtype)], dim=1))
