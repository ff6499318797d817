"""Step sizes of a chain, and the keywords of its kernel."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from vaebm.config.ebm import ChainSettings, LangevinSettings
from vaebm.system.errors import UserError, brief, check_number

StepSize = float | Sequence[float]
"""η, or one for each step."""


def numbered(steps: int, step_size: StepSize, temperature: float = 1.0) -> Iterator[tuple[int, float]]:
    """Number, from 1, and size of each step; a `UserError` for a number out of range, or not a size for each step."""
    check_number("steps", steps, 0)
    check_number("temperature", temperature, 0, whole=False)
    sizes = step_size if isinstance(step_size, Sequence) else [step_size] * steps
    try:
        fits = len(sizes) == steps and all(0 < size < math.inf for size in sizes)
    except (TypeError, ValueError, RuntimeError):  # no numbers, or arrays of several
        fits = False
    if not fits:
        raise UserError(f"step_size: expected a number above 0, or {steps} of them, found {brief(repr(step_size))}")
    return zip(range(1, steps + 1), sizes, strict=True)


def step_sizes(chain: LangevinSettings) -> StepSize:
    """η, or that of each of the K steps: from η₁ to η_K in equal differences, or by half a cosine."""
    first, last = chain.step_size, chain.final_step_size or 0.1 * chain.step_size
    if chain.schedule == "constant":
        return first
    parts = [step / max(chain.steps - 1, 1) for step in range(chain.steps)]
    if chain.schedule == "cosine":
        parts = [0.5 - 0.5 * math.cos(math.pi * part) for part in parts]
    return [first + part * (last - first) for part in parts]


def keywords(chain: ChainSettings) -> dict[str, Any]:
    """Keyword arguments of the kernel's function; those that have their default may be left out."""
    found = {name: value for name, value in chain.chosen.items() if name != chain.tag}
    if isinstance(chain, LangevinSettings):
        found = {name: value for name, value in found.items() if name not in ("schedule", "final_step_size")}
        found["step_size"] = step_sizes(chain)
    return found
