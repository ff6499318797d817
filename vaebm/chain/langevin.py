"""Langevin dynamics in the noise space of a VAE (VAEBM section 3.2), unadjusted or with the Metropolis correction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from vaebm.noise import NoiseSource

Potential = Callable[[Sequence[Tensor]], Tensor]
"""Energy of a list of noise tensors, one value per chain: (B,)."""


class State(NamedTuple):
    """Where the chains are, and what a step needs to know there."""

    eps: list[Tensor]
    """One tensor per latent group, the pixels' last, each (B, …)."""
    potential: Tensor
    """U(ε), (B,)."""
    gradient: list[Tensor]
    """∇U(ε) of each chain alone, the shapes of `eps`."""


class Transition(NamedTuple):
    """One step of the chains."""

    state: State
    """After the step."""
    acceptance: Tensor
    """Probability with which a Metropolis correction takes the proposed step, (B,) in double precision."""


def langevin(
    potential: Potential,
    eps: Sequence[Tensor],
    *,
    steps: int,
    step_size: float,
    noise: NoiseSource,
    metropolis: bool = False,
    watch: Callable[[list[Tensor]], object] | None = None,
) -> list[Tensor]:
    """Move `eps` by Langevin steps towards exp(−potential) (VAEBM algorithm 1).

    The unadjusted chain reaches exp(−potential) up to a bias of the order of the step size; the Metropolis correction
    (MALA; Roberts and Tweedie, 1996) removes the bias, for one evaluation more in all and chains that at times stand still.

    Args:
        potential: energy of a list of noise tensors, one value per chain: (B,).
        eps: one tensor per latent group, the pixels' last, each (B, …).
        steps: K.
        step_size: η in ε ← ε − η/2 ∇U(ε) + √η ω.
        noise: ω, a function of the step and each chain's global index; step 0 is left to the start of the chain.
        metropolis: accept or reject each chain's step.
        watch: called with the noise after each step.

    Returns:
        The moved noise, same shapes. The input is left as it was.
    """
    state = [part.detach() for part in eps]
    if metropolis:
        for transition in transitions(potential, eps, steps=steps, step_size=step_size, noise=noise, metropolis=True):
            state = transition.state.eps
            if watch is not None:
                watch(state)
        return state
    for step in range(1, steps + 1):
        state = propose(evaluate(potential, state), step_size, noise.like(state, step))
        if watch is not None:
            watch(state)
    return state


def transitions(
    potential: Potential,
    eps: Sequence[Tensor],
    *,
    steps: int,
    step_size: float,
    noise: NoiseSource,
    metropolis: bool = False,
) -> Iterator[Transition]:
    """The steps of `langevin` one by one, from the same noise to the same states, each with its probability of acceptance.

    K steps take K + 1 evaluations of the potential and its gradient, one more than the unadjusted chain needs, since each
    end of a step is the start of the next.
    """
    decisions = replace(noise, purpose=f"{noise.purpose}/metropolis")
    state = evaluate(potential, eps)
    for step in range(1, steps + 1):
        proposal = evaluate(potential, propose(state, step_size, noise.like(state.eps, step)))
        probability = acceptance(state, proposal, step_size)
        if metropolis:
            (drawn,) = decisions.uniform([()], step=step, device=probability.device)
            state = _select(drawn < probability, proposal, state)
        else:
            state = proposal
        yield Transition(state, probability)


def evaluate(potential: Potential, eps: Sequence[Tensor]) -> State:
    """Potential and gradient of each chain at `eps`."""
    with torch.enable_grad():
        leaves = [part.detach().requires_grad_() for part in eps]
        energies = potential(leaves)
        gradient = torch.autograd.grad(energies.sum(), leaves)
    return State([leaf.detach() for leaf in leaves], energies.detach(), list(gradient))


@torch.no_grad()
def propose(state: State, step_size: float, omega: Sequence[Tensor]) -> list[Tensor]:
    """ε − η/2 ∇U(ε) + √η ω."""
    return [
        e - 0.5 * step_size * g + math.sqrt(step_size) * w
        for e, g, w in zip(state.eps, state.gradient, omega, strict=True)
    ]


@torch.no_grad()
def acceptance(before: State, after: State, step_size: float) -> Tensor:
    """Probability of a Metropolis correction to take the Langevin step from x (`before`) to y (`after`), (B,) in double precision.

    It is min(1, π(y) q(x|y) / (π(x) q(y|x))) with π = exp(−U) and q(y|x) = N(y; x − η/2 ∇U(x), η). With g = ∇U(x), h = ∇U(y)
    and d = y − x the logarithm of the ratio is U(x) − U(y) + ½ (g + h) · (d + η/4 (g − h)), where nothing is divided by η,
    so that small steps lose no digits. A step to where the potential is infinite or undefined is never taken.
    """
    log_ratio = before.potential.double() - after.potential.double()
    for x, y, g, h in zip(before.eps, after.eps, before.gradient, after.gradient, strict=True):
        x, y, g, h = (part.double() for part in (x, y, g, h))
        log_ratio = log_ratio + 0.5 * ((g + h) * (y - x + 0.25 * step_size * (g - h))).flatten(1).sum(1)
    return torch.where(after.potential.isfinite(), log_ratio.clamp(max=0.0).exp().nan_to_num(nan=0.0), 0.0)


def _select(taken: Tensor, there: State, here: State) -> State:
    """`there` for the chains in the mask `taken`, (B,), `here` for the others."""

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(taken.reshape(-1, *[1] * (new.dim() - 1)), new, old)

    return State(
        [choose(*pair) for pair in zip(there.eps, here.eps, strict=True)],
        choose(there.potential, here.potential),
        [choose(*pair) for pair in zip(there.gradient, here.gradient, strict=True)],
    )
