"""Annealed importance sampling (Neal, 2001) in noise space."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vaebm.chain.langevin import PotentialFunction, State, acceptance, evaluate, gaussian_potential, propose
from vaebm.chain.mala import accept
from vaebm.chain.schedules import numbered
from vaebm.noise import NoiseSource
from vaebm.system.errors import check_number
from vaebm.system.shapes import PerImage


@torch.no_grad()
def annealed_log_weights(
    potential: PotentialFunction, eps: Sequence[Tensor], *, temperatures: int, step_size: float, noise: NoiseSource
) -> PerImage:
    """ln w of chains along U_β = (1 − β) ½‖ε‖² + β U(ε), β = 0, 1/K, …, 1, with E[w] = ∫ exp(−U) dε / (2π)^(n/2).

    Between two values of β, each chain makes one step of `mala`, which keeps exp(−U_β) invariant at any step size.
    `temperatures` is K, from 1, which takes K gradients. The chains start at `eps`, standard normal noise of n
    dimensions. `potential` is U; `step_size`, `noise` and errors are those of `mala`. The result is (B,), in double
    precision.
    """
    check_number("temperatures", temperatures, 1)
    state = evaluate(potential, eps)
    log_weights = torch.zeros_like(state.potential, dtype=torch.float64)
    for step, size in numbered(temperatures, step_size):
        log_weights += (gaussian_potential(state.eps) - state.potential.double()) / temperatures
        if step < temperatures:
            beta = step / temperatures
            before = _tempered(state, beta)
            proposal = evaluate(potential, propose(before, size, noise.like(state.eps, step)))
            probability = acceptance(before, _tempered(proposal, beta), size)
            state = accept(state, proposal, probability, noise, step)
    return log_weights


def _tempered(state: State, beta: float) -> State:
    """The state with U_β and its gradient."""
    gradient = [beta * g + (1 - beta) * e for g, e in zip(state.gradient, state.eps, strict=True)]
    return State(state.eps, beta * state.potential.double() + (1 - beta) * gaussian_potential(state.eps), gradient)
