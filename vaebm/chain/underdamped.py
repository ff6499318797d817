"""Kinetic (underdamped) Langevin dynamics by the splitting BAOAB (Leimkuhler and Matthews, 2013)."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vaebm.chain.langevin import PotentialFunction, Transition, evaluate, gaussian_potential, probability
from vaebm.chain.schedules import StepSize, numbered
from vaebm.noise import NoiseSource, check_source
from vaebm.system.errors import check_number


@torch.no_grad()
def underdamped(
    potential: PotentialFunction,
    eps: Sequence[Tensor],
    *,
    steps: int,
    step_size: StepSize,
    noise: NoiseSource,
    friction: float = 1.0,
    temperature: float = 1.0,
    callback: Callable[[list[Tensor]], object] | None = None,
) -> list[Tensor]:
    """Move chains towards exp(−U / τ) with momenta p, drawn from N(0, τ) at the start.

    A step of time h = √η is half a kick, half a drift, friction, half a drift, half a kick:

        p ← p − h/2 ∇U(ε);  ε ← ε + h/2 p;  p ← c p + √((1 − c²) τ) ω;
        ε ← ε + h/2 p;  p ← p − h/2 ∇U(ε),  with c = exp(−γ h).

    The last half kick and the first of the next step share a gradient, so K steps take K gradients. For a Gaussian ε
    has no bias at any stable step size (h below 2 / √λ for the curvature λ); for large γ a step is one of `langevin`
    with the mean of two successive ω.

    Further arguments, the result and errors are those of `langevin`; `noise` also draws the first momenta.

    Args:
        friction: γ, from 0.
    """
    state, momenta, before = [part.detach() for part in eps], _momenta(eps, noise, temperature, friction), 0.0
    for step, size in numbered(steps, step_size):
        half = 0.5 * math.sqrt(size)
        momenta = _add(momenta, -(before + half), evaluate(potential, state).gradient)
        fresh = _refresh(momenta, math.exp(-2 * friction * half), noise.like(state, step), temperature)
        state, momenta, before = _add(_add(state, half, momenta), half, fresh), fresh, half
        if callback is not None:
            callback(state)
    return state


@torch.no_grad()
def underdamped_transitions(
    potential: PotentialFunction,
    eps: Sequence[Tensor],
    *,
    steps: int,
    step_size: StepSize,
    noise: NoiseSource,
    friction: float = 1.0,
    temperature: float = 1.0,
) -> Iterator[Transition]:
    """The steps of `underdamped` one by one, up to rounding, with one gradient more.

    A Metropolis correction would accept a step with min(1, exp(−W / τ)), where W is the change of U + ½‖p‖² in kicks
    and drifts, without that in the friction (the shadow work; Sivak, Chodera and Crooks, 2013).
    """
    state, momenta = evaluate(potential, eps), _momenta(eps, noise, temperature, friction)
    for step, size in numbered(steps, step_size):
        half = 0.5 * math.sqrt(size)
        kicked = _add(momenta, -half, state.gradient)
        fresh = _refresh(kicked, math.exp(-2 * friction * half), noise.like(state.eps, step), temperature)
        after = evaluate(potential, _add(_add(state.eps, half, kicked), half, fresh))
        work = after.potential.double() - state.potential.double()
        work = work + gaussian_potential(kicked) - gaussian_potential(momenta)
        momenta = _add(fresh, -half, after.gradient)
        work = work + gaussian_potential(momenta) - gaussian_potential(fresh)
        state = after
        yield Transition(state, probability(-work / temperature, after))


def _momenta(eps: Sequence[Tensor], noise: NoiseSource, temperature: float, friction: float) -> list[Tensor]:
    """Momenta at the start of a chain."""
    check_source(noise)
    check_number("temperature", temperature, 0, whole=False)
    check_number("friction", friction, 0, whole=False)
    return [math.sqrt(temperature) * omega for omega in noise.derived("momenta").like(eps, 0)]


def _add(parts: Sequence[Tensor], factor: float, others: Sequence[Tensor]) -> list[Tensor]:
    return [part + factor * other for part, other in zip(parts, others, strict=True)]


def _refresh(momenta: Sequence[Tensor], kept: float, omega: Sequence[Tensor], temperature: float) -> list[Tensor]:
    """c p + √((1 − c²) τ) ω."""
    return _add([kept * part for part in momenta], math.sqrt((1 - kept**2) * temperature), omega)
