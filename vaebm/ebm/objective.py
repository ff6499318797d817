"""Contrastive divergence for the energy, its gradient clip, and when a training counts as diverged (VAEBM section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebm.config import GuardSettings


class ContrastiveDivergence(NamedTuple):
    """Parts of the loss of one iteration."""

    loss: Tensor
    """mean E(x⁺) − mean E(x⁻) + penalty, a scalar with gradient."""
    positive: Tensor
    """Energies of the data, (B,)."""
    negative: Tensor
    """Energies of the chains' images, (B,)."""

    @property
    def gap(self) -> Tensor:
        """mean E(x⁺) − mean E(x⁻)."""
        return (self.positive.mean() - self.negative.mean()).detach()

    @property
    def spread(self) -> Tensor:
        """Standard deviation of the energies around their two means, the unit in which a gap is large or small."""
        return torch.stack([self.positive.detach().var(), self.negative.detach().var()]).mean().sqrt()


def contrastive_divergence(energy: nn.Module, positive: Tensor, negative: Tensor, energy_penalty: float = 0.0) -> ContrastiveDivergence:
    """Gradient estimate of the negative log-likelihood of the energy (VAEBM eq. 5), with a penalty on the energies' magnitude.

    Args:
        positive: images of the data, (B, C, H, W) in [0, 1].
        negative: images of the chains, same shape.
        energy_penalty: weight of mean E(x⁺)² + mean E(x⁻)².
    """
    data, chains = energy(positive), energy(negative)
    loss = data.mean() - chains.mean()
    if energy_penalty:
        loss = loss + energy_penalty * (data.square().mean() + chains.square().mean())
    return ContrastiveDivergence(loss, data, chains)


@torch.no_grad()
def adaptive_clip(optimizer: torch.optim.Adam) -> None:
    """Clip every element of every gradient at 3 √(v / (1 − β₂^t)) + 0.1, with Adam's v before this step (Du et al.).

    Parameters that Adam has not moved yet are left alone.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if parameter.grad is None or not state:
                continue
            bound = 3.0 * (state["exp_avg_sq"] / (1.0 - group["betas"][1] ** float(state["step"]))).sqrt() + 0.1
            parameter.grad.copy_(parameter.grad.clamp(-bound, bound))


class WeightAverage:
    """Exponential moving average of a module's parameters, warmed up so that the start does not linger in it.

    Args:
        parameters: of the module; they are read, never changed.
        decay: of the average, in [0, 1).
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float):
        self.live = list(parameters)
        self.decay = decay
        self.updates = 0
        self.mean = [parameter.detach().clone() for parameter in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present values."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9.0))
        torch._foreach_lerp_(self.mean, [parameter.detach() for parameter in self.live], 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Averages and the number of updates."""
        return {"mean": self.mean, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved average."""
        self.updates = state["updates"]
        for mean, saved in zip(self.mean, state["mean"], strict=True):
            mean.copy_(saved)


@dataclass
class Guard:
    """Tells when a training of the energy has diverged: too long a gap out of all proportion, or values that are not finite.

    The raw gap misleads: it swings with the scale of the energy while the samples get better. In units of the energies'
    own spread it says how well the energy tells data from chains; beyond a handful the chains no longer reach the data.

    Attributes:
        settings: limit and patience.
        bad: iterations in a row that were beyond the limit.
        reason: what was seen last, empty while all is well.
    """

    settings: GuardSettings
    bad: int = 0
    reason: str = ""

    def watch(self, loss: float, gap: float, spread: float, gradient_norm: float) -> None:
        """Take in one iteration."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            self.bad += 1
            self.reason = f"loss {loss:.4g}, gradient norm {gradient_norm:.4g}"
        elif abs(gap) > self.settings.gap_limit * spread:
            self.bad += 1
            self.reason = f"energy gap {gap:.4g} is beyond {self.settings.gap_limit:g} times the spread {spread:.4g}"
        else:
            self.bad, self.reason = 0, ""

    @property
    def diverged(self) -> bool:
        """Whether it is time to stop."""
        return self.bad >= self.settings.patience

    def state_dict(self) -> dict[str, Any]:
        """What has been seen so far."""
        return {"bad": self.bad, "reason": self.reason}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was seen."""
        self.bad, self.reason = state["bad"], state["reason"]
