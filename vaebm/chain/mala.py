"""Langevin steps with a Metropolis correction, MALA (Roberts and Tweedie, 1996)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vaebm.chain.langevin import PotentialFunction, State, Transition, acceptance, evaluate, propose
from vaebm.chain.schedules import StepSize, numbered
from vaebm.noise import NoiseSource, check_source
from vaebm.system.shapes import PerImage


def mala(
    potential: PotentialFunction,
    eps: Sequence[Tensor],
    *,
    callback: Callable[[list[Tensor]], object] | None = None,
    **settings: Any,
) -> list[Tensor]:
    """Move chains towards exp(−U / τ); arguments, result and errors are those of `langevin`.

    Each chain accepts the step of `langevin` with its own Metropolis–Hastings probability, or stays. The stationary
    distribution has no bias. K steps take K + 1 gradients.
    """
    check_source(settings.get("noise"))
    state = [part.detach() for part in eps]
    for transition in mala_transitions(potential, eps, **settings):
        state = transition.state.eps
        if callback is not None:
            callback(state)
    return state


def mala_transitions(
    potential: PotentialFunction,
    eps: Sequence[Tensor],
    *,
    steps: int,
    step_size: StepSize,
    noise: NoiseSource,
    temperature: float = 1.0,
) -> Iterator[Transition]:
    """The steps of `mala` one by one, with the probability with which each was accepted."""
    state = evaluate(potential, eps)
    for step, size in numbered(steps, step_size, temperature):
        proposal = evaluate(potential, propose(state, size, noise.like(state.eps, step), temperature))
        probability = acceptance(state, proposal, size, temperature)
        state = accept(state, proposal, probability, noise, step)
        yield Transition(state, probability)


@torch.no_grad()
def accept(before: State, proposal: State, probability: PerImage, noise: NoiseSource, step: int) -> State:
    """The proposal for the chains whose uniform number is below their probability, else the state before."""
    (uniform,) = noise.derived("acceptance").uniform([()], step=step, device=probability.device, dtype=torch.float64)
    accepted = uniform < probability

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(accepted.view(-1, *[1] * (new.dim() - 1)), new, old)

    return State(
        list(map(choose, proposal.eps, before.eps)),
        choose(proposal.potential, before.potential),
        list(map(choose, proposal.gradient, before.gradient)),
    )
