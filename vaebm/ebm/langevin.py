"""Langevin dynamics in the noise space of a VAE (VAEBM section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vaebm.noise import NoiseSource

Potential = Callable[[Sequence[Tensor]], Tensor]
"""Energy of a list of noise tensors, one value per chain: (B,)."""


def langevin(
    potential: Potential,
    eps: Sequence[Tensor],
    *,
    steps: int,
    step_size: float,
    noise: NoiseSource,
    watch: Callable[[list[Tensor]], object] | None = None,
) -> list[Tensor]:
    """Move `eps` by unadjusted Langevin steps towards exp(−potential) (VAEBM algorithm 1).

    Args:
        potential: energy of a list of noise tensors, one value per chain: (B,).
        eps: one tensor per latent group, the pixels' last, each (B, …).
        steps: K.
        step_size: η in ε ← ε − η/2 ∇U(ε) + √η ω.
        noise: ω, a function of the step and each chain's global index; step 0 is left to the start of the chain.
        watch: called with the noise after each step.

    Returns:
        The moved noise, same shapes. The input is left as it was.
    """
    state = list(eps)
    for step in range(1, steps + 1):
        with torch.enable_grad():
            state = [part.detach().requires_grad_() for part in state]
            gradients = torch.autograd.grad(potential(state).sum(), state)
        with torch.no_grad():
            drawn = noise.like(state, step)
            state = [e - 0.5 * step_size * g + math.sqrt(step_size) * w for e, g, w in zip(state, gradients, drawn, strict=True)]
        if watch is not None:
            watch(state)
    return [part.detach() for part in state]
