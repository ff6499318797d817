"""Normal distributions with softly clamped parameters: of latent variables and of pixels (NVAE section 3, VAEBM section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)

CHAIN_LOG_SIGMA_FLOOR = -2.0
"""Smallest log σ of the pixels in the published program's chain."""


def soft_clamp(x: Tensor) -> Tensor:
    """5 tanh(x / 5): nearly x around 0, never beyond ±5."""
    return 5.0 * torch.tanh(x / 5.0)


class Normal:
    """N(μ, σ²) with μ = soft_clamp(m) and σ = (exp(soft_clamp(ℓ)) + 0.01) · t.

    Args:
        m, ell: raw parameters, any shape.
        temperature: t, scales σ.
        log_sigma_floor: smallest value of soft_clamp(ℓ), none if None.
    """

    def __init__(self, m: Tensor, ell: Tensor, temperature: float = 1.0, log_sigma_floor: float | None = None):
        log_sigma = soft_clamp(ell)
        if log_sigma_floor is not None:
            log_sigma = log_sigma.clamp(min=log_sigma_floor)
        self.mean = soft_clamp(m)
        self.sigma = (log_sigma.exp() + 1e-2) * temperature

    def sample(self, eps: Tensor) -> Tensor:
        """μ + σ ε."""
        return torch.addcmul(self.mean, self.sigma, eps)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of `x`, elementwise."""
        return -0.5 * ((x - self.mean) / self.sigma).square() - 0.5 * LOG_2PI - self.sigma.log()

    def kl(self, prior: Normal) -> Tensor:
        """KL(self ‖ prior), elementwise."""
        distance = (self.mean - prior.mean) / prior.sigma
        ratio = self.sigma / prior.sigma
        return 0.5 * (distance.square() + ratio.square()) - 0.5 - ratio.log()


class PixelNormal:
    """The Gaussian decoder p(x|z): a normal distribution of y = 2x − 1 for images x in [0, 1].

    Args:
        logits: (B, 2C, H, W): C raw means, then C raw log standard deviations.
        log_sigma_floor: smallest log σ, none in the paper.
    """

    def __init__(self, logits: Tensor, log_sigma_floor: float | None = None):
        self.m, self.ell = logits.chunk(2, dim=1)
        self.normal = Normal(self.m, self.ell, log_sigma_floor=log_sigma_floor)

    @property
    def mean(self) -> Tensor:
        """Mean image ½μ + ½, (B, C, H, W); may leave [0, 1]."""
        return 0.5 * self.normal.mean + 0.5

    def sample(self, eps: Tensor) -> Tensor:
        """Image (B, C, H, W) in [0, 1] for noise `eps` of that shape; saturated pixels have no gradient."""
        return 0.5 * self.normal.sample(eps).clamp(-1.0, 1.0) + 0.5

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of y = 2x − 1 for images `x`, elementwise (B, C, H, W)."""
        return self.normal.log_prob(2.0 * x - 1.0)

    def chain_log_prob(self, x: Tensor) -> Tensor:
        """As `log_prob` with log σ ≥ −2: what the published program's chain uses, in the potential `density` only."""
        return Normal(self.m, self.ell, log_sigma_floor=CHAIN_LOG_SIGMA_FLOOR).log_prob(2.0 * x - 1.0)
