"""Unadjusted Langevin dynamics in the noise space of a VAE (VAEBM section 3.2)."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vaebm.chain.schedules import StepSize, numbered
from vaebm.noise import NoiseSource, check_source
from vaebm.system.shapes import PerImage

PotentialFunction = Callable[[Sequence[Tensor]], PerImage]
"""U of a list of noise tensors (B, …), one value per chain: (B,)."""


class State(NamedTuple):
    """State of the chains, with the potential and its gradient there."""

    eps: list[Tensor]
    """One tensor (B, …) per latent group, the pixels' last."""
    potential: PerImage
    """U(ε), (B,)."""
    gradient: list[Tensor]
    """∇U(ε) of each chain, the shapes of `eps`."""


class Transition(NamedTuple):
    """One step of the chains."""

    state: State
    """State after the step."""
    acceptance: PerImage
    """Probability that a Metropolis correction would accept the step, (B,) in double precision."""


def langevin(
    potential: PotentialFunction,
    eps: Sequence[Tensor],
    *,
    steps: int,
    step_size: StepSize,
    noise: NoiseSource,
    temperature: float = 1.0,
    callback: Callable[[list[Tensor]], object] | None = None,
) -> list[Tensor]:
    """Move chains towards exp(−U / τ) by Langevin steps ε ← ε − η/2 ∇U(ε) + √(η τ) ω (VAEBM algorithm 1, with τ = 1).

    The stationary distribution has a bias of the order of the step size.

    Args:
        potential: U of a list of noise tensors, one value per chain: (B,).
        eps: state of the chains, one tensor (B, …) per latent group, the pixels' last.
        steps: number of steps K.
        step_size: η, or one for each step.
        noise: source of ω, indexed by step (from 1) and by the chain's global index.
        temperature: τ, from 0.
        callback: called with the noise after each step.

    Returns:
        The new state, same shapes. `eps` is not modified.

    Raises:
        UserError: steps, step size or temperature out of range, or not an index of `noise` for each chain.
    """
    check_source(noise)
    state = [part.detach() for part in eps]
    for step, size in numbered(steps, step_size, temperature):
        state = propose(evaluate(potential, state), size, noise.like(state, step), temperature)
        if callback is not None:
            callback(state)
    return state


def transitions(
    potential: PotentialFunction,
    eps: Sequence[Tensor],
    *,
    steps: int,
    step_size: StepSize,
    noise: NoiseSource,
    temperature: float = 1.0,
) -> Iterator[Transition]:
    """The steps of `langevin` one by one, with the same noise and states, each with its acceptance probability.

    K steps take K + 1 evaluations of the potential and its gradient, one more than `langevin`.
    """
    state = evaluate(potential, eps)
    for step, size in numbered(steps, step_size, temperature):
        before, state = state, evaluate(potential, propose(state, size, noise.like(state.eps, step), temperature))
        yield Transition(state, acceptance(before, state, size, temperature))


def evaluate(potential: PotentialFunction, eps: Sequence[Tensor]) -> State:
    """Potential and gradient of each chain at `eps`."""
    with torch.enable_grad():
        leaves = [part.detach().requires_grad_() for part in eps]
        energies = potential(leaves)
        gradient = torch.autograd.grad(energies.sum(), leaves)
    return State([leaf.detach() for leaf in leaves], energies.detach(), list(gradient))


@torch.no_grad()
def propose(state: State, step_size: float, omega: Sequence[Tensor], temperature: float = 1.0) -> list[Tensor]:
    """ε − η/2 ∇U(ε) + √(η τ) ω (VAEBM algorithm 1)."""
    return [
        torch.add(e, g, alpha=-0.5 * step_size).add_(w, alpha=math.sqrt(step_size * temperature))
        for e, g, w in zip(state.eps, state.gradient, omega, strict=True)
    ]


@torch.no_grad()
def acceptance(before: State, after: State, step_size: float, temperature: float = 1.0) -> PerImage:
    """Metropolis–Hastings acceptance probability of a step from x, `before`, to y, `after`: (B,) in double precision.

    min(1, π(y) q(x|y) / (π(x) q(y|x))), π = exp(−U/τ), q(y|x) = N(y; x − η/2 ∇U(x), ητ) (Roberts and Tweedie, 1996).
    With g = ∇U(x), h = ∇U(y) and d = y − x, the log ratio is U(x) − U(y) + ½ (g + h) · (d + η/4 (g − h)), over τ.
    Nothing is divided by η, so small steps lose no digits. The probability is 0 where U(y) is infinite or undefined.
    """
    log_ratio = before.potential.double() - after.potential.double()
    for x, y, g, h in zip(before.eps, after.eps, before.gradient, after.gradient, strict=True):
        x, y, g, h = (part.double() for part in (x, y, g, h))
        log_ratio = log_ratio + 0.5 * ((g + h) * (y - x + 0.25 * step_size * (g - h))).flatten(1).sum(1)
    return probability(log_ratio / temperature, after)


def gaussian_potential(parts: Sequence[Tensor]) -> PerImage:
    """½‖ε‖² over all parts (B, …), also the kinetic energy of momenta: (B,) in double precision."""
    return 0.5 * torch.stack([part.double().square().flatten(1).sum(1) for part in parts]).sum(0)


def probability(log_ratio: PerImage, after: State) -> PerImage:
    """min(1, exp(log ratio)), (B,); 0 where U(after) is infinite or undefined."""
    return torch.where(after.potential.isfinite(), log_ratio.clamp(max=0.0).exp().nan_to_num(nan=0.0), 0.0)
