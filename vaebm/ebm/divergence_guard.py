"""When a training of the energy counts as diverged."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from vaebm.config import GuardSettings

HISTORY = 100
"""Good iterations whose loss and gradient norm are remembered."""


@dataclass
class Guard:
    """Tells when a training of the energy has diverged: for too long out of all proportion, or not finite.

    An iteration is bad when

    - its loss or the norm of its gradient is not finite;
    - the energy gap is beyond `gap_limit` times the spread. The raw gap misleads: it swings with the scale of the energy
      while the samples get better. In units of the energies' own spread it says how well the energy tells data from
      chains; beyond a handful the chains no longer reach the data;
    - |loss| or the norm of the gradient is beyond `growth_limit` times its median over the last good iterations, where a
      loss counts as the spread at least, since it may be near 0 by chance. A scale that grows is no divergence, and its
      history grows with it; one that outruns it is.

    The training has diverged after `patience` bad iterations in a row.

    Attributes:
        settings: limits and patience.
        bad: bad iterations in a row.
        reason: what was seen last, empty while all is well.
        history: of the last good iterations |loss|, or the spread if it is larger, and the norm of the gradient.
    """

    settings: GuardSettings
    bad: int = 0
    reason: str = ""
    history: list[tuple[float, float]] = field(default_factory=list)

    def watch(self, loss: float, gap: float, spread: float, gradient_norm: float) -> None:
        """Take in one iteration.

        Args:
            loss: of the iteration.
            gap: mean E(data) − mean E(chains).
            spread: standard deviation of the energies around these two means.
            gradient_norm: of the whole gradient, before it is clipped.
        """
        self.reason = self._judge(loss, gap, spread, gradient_norm)
        if self.reason:
            self.bad += 1
        else:
            self.bad = 0
            self.history = [*self.history, (max(abs(loss), spread), gradient_norm)][-HISTORY:]

    def _judge(self, loss: float, gap: float, spread: float, gradient_norm: float) -> str:
        """What is wrong with an iteration; empty: nothing."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return f"loss {loss:.4g}, gradient norm {gradient_norm:.4g}"
        if abs(gap) > self.settings.gap_limit * spread:
            return f"energy gap {gap:.4g} is beyond {self.settings.gap_limit:g} times the spread {spread:.4g}"
        if self.history:
            for name, value, before in zip(
                ("loss", "gradient norm"), (abs(loss), gradient_norm), zip(*self.history, strict=True), strict=True
            ):
                if value > self.settings.growth_limit * median(before):
                    return f"{name} {value:.4g} is beyond {self.settings.growth_limit:g} times its median before, {median(before):.4g}"
        return ""

    @property
    def diverged(self) -> bool:
        """Whether it is time to stop."""
        return self.bad >= self.settings.patience

    def state_dict(self) -> dict[str, Any]:
        """What has been seen so far."""
        return {"bad": self.bad, "reason": self.reason, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was seen."""
        self.bad, self.reason, self.history = (
            state["bad"],
            state["reason"],
            [tuple(values) for values in state["history"]],
        )

    def forget(self) -> None:
        """Begin anew, as at a restart of the training."""
        self.bad, self.reason, self.history = 0, "", []
