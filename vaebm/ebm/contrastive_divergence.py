"""Contrastive divergence for the energy: its images and its loss, the clip of its gradient, the average of its weights (VAEBM section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from vaebm.config import EBMSettings
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.nvae.pixel_distributions import PixelNormal, match_noise


@torch.no_grad()
def positives(nvae: NVAE, images: Tensor, stage: EBMSettings, noise: NoiseSource) -> Tensor:
    """Training images (B, C, H, W) uint8 as the energy sees them, in [0, 1].

    Args:
        stage: `quantize_positives`: of the depth that the NVAE was trained on, or of 8 bits; `positives`: as they are, or with the
            decoder's pixel noise (`match_noise`).
        noise: of that noise, one index per image.
    """
    like = nvae.prior_constant
    x = nvae.as_input(images) if stage.quantize_positives else images.to(like.device, like.dtype) / 255.0
    return x if stage.positives == "clean" else match_noise(nvae(nvae.as_input(images), noise=noise).pixels, x, noise)


@torch.no_grad()
def negatives(nvae: NVAE, eps_z: Sequence[Tensor], eps_x: Tensor, kind: Literal["sample", "mean"]) -> Tensor:
    """The chains' images (B, C, H, W): decoder samples in [0, 1], or decoder means, which may leave it."""
    pixels = cast(PixelNormal, nvae.decode(eps_z)[0])
    return pixels.mean if kind == "mean" else pixels.sample(eps_x)


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


def contrastive_divergence(
    energy: nn.Module, positive: Tensor, negative: Tensor, energy_penalty: float = 0.0
) -> ContrastiveDivergence:
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
