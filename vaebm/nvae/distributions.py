"""Normal distributions with softly clamped parameters, for latents and pixels (NVAE section 3, VAEBM section 3)."""

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
BOUND = 5.0
"""Bound of a softly clamped parameter."""
LEAST_SIGMA = 1e-2
"""Lower bound of σ at temperature 1."""


def soft_clamp(x: Tensor) -> Tensor:
    """5 tanh(x / 5): close to x near 0, within ±5."""
    return BOUND * torch.tanh(x / BOUND)


def full_precision(x: Tensor) -> Tensor:
    """Convert bfloat16 from autocast to float32, for the parameters of distributions."""
    return x.float() if x.dtype == torch.bfloat16 else x


class Normal:
    """N(μ, σ²) with μ = soft_clamp(m) and σ = (exp(soft_clamp(ℓ)) + 0.01) · t, for raw parameters of any shape.

    t is the temperature, and `log_sigma_floor` a lower bound of soft_clamp(ℓ).
    """

    def __init__(self, m: Tensor, ell: Tensor, temperature: float = 1.0, log_sigma_floor: float | None = None):
        log_sigma = soft_clamp(ell)
        if log_sigma_floor is not None:
            log_sigma = log_sigma.clamp(min=log_sigma_floor)
        self.mean = soft_clamp(m)
        sigma = log_sigma.exp() + LEAST_SIGMA
        self.sigma = sigma if temperature == 1.0 else sigma * temperature  # one operation less in chains and trainings

    def sample(self, eps: Tensor) -> Tensor:
        """μ + σ ε."""
        return torch.addcmul(self.mean, self.sigma, eps)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of `x`, elementwise: −½ ((x − μ)/σ)² − ½ ln 2π − ln σ."""
        return -0.5 * ((x - self.mean) / self.sigma).square() - 0.5 * LOG_2PI - self.sigma.log()

    def kl(self, prior: "Normal") -> Tensor:
        """KL(self ‖ prior) = ½ ((μ − μ₀)²/σ₀² + σ²/σ₀²) − ½ − ln(σ/σ₀), elementwise."""
        distance = (self.mean - prior.mean) / prior.sigma
        ratio = self.sigma / prior.sigma
        return 0.5 * (distance.square() + ratio.square()) - 0.5 - ratio.log()
