"""Detection of diverged trainings of the energy."""

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from vaebm.config import GuardSettings

HISTORY = 100
"""Number of good iterations whose loss and gradient norm are kept."""


@dataclass
class Guard:
    """Detects that a training of the energy has diverged.

    An iteration is bad if

    - its loss or gradient norm is not finite;
    - |energy gap| > `gap_limit` × spread. The unscaled gap is no criterion: it changes with the scale of the energy;
    - |loss| or the gradient norm exceeds `growth_limit` × its median over the last good iterations. A loss counts as at
      least the spread, because it may be near 0 by chance.

    The training has diverged after `patience` bad iterations in a row.

    Attributes:
        reason: why the last iteration was bad; empty if it was good.
        last_reason: why the last bad iteration was; empty if there was none in this process.
        history: max(|loss|, spread) and gradient norm of the last good iterations.
    """

    settings: GuardSettings
    bad: int = 0
    reason: str = ""
    history: list[tuple[float, float]] = field(default_factory=list)
    last_reason: str = field(default="", compare=False)

    def watch(self, loss: float, gap: float, spread: float, gradient_norm: float) -> None:
        """Judge one iteration by its loss, energy gap, spread of the energies, and gradient norm before the clips."""
        self.reason = self._judge(loss, gap, spread, gradient_norm)
        if self.reason:
            self.last_reason = self.reason
            self.bad += 1
        else:
            self.bad = 0
            self.history = [*self.history, (max(abs(loss), spread), gradient_norm)][-HISTORY:]

    def _judge(self, loss: float, gap: float, spread: float, gradient_norm: float) -> str:
        """Why an iteration is bad; empty if it is good."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return f"loss {loss:.4g}, gradient norm {gradient_norm:.4g}"
        if abs(gap) > self.settings.gap_limit * spread:
            return f"energy gap {gap:.4g} is beyond {self.settings.gap_limit:g} times the spread {spread:.4g}"
        if self.history:
            losses, norms = zip(*self.history, strict=True)
            for name, value, before in ("loss", abs(loss), losses), ("gradient norm", gradient_norm, norms):
                limit, middle = self.settings.growth_limit, median(before)
                if value > limit * middle:
                    return f"{name} {value:.4g} is beyond {limit:g} times its median before, {middle:.4g}"
        return ""

    @property
    def diverged(self) -> bool:
        """True after `patience` bad iterations in a row."""
        return self.bad >= self.settings.patience

    def state_dict(self) -> dict[str, Any]:
        """Count, reason and history."""
        return {"bad": self.bad, "reason": self.reason, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.bad, self.reason = state["bad"], state["reason"]
        self.history = [tuple(values) for values in state["history"]]

    def forget(self) -> None:
        """Reset, at a restart of the training."""
        self.bad, self.reason, self.history = 0, "", []
