"""Contrastive divergence: images, loss, gradient clipping, and average of the weights (VAEBM section 3.1)."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebm.config import EBMSettings
from vaebm.energy.network import EnergyNetwork
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.nvae.pixel_distributions import match_noise
from vaebm.system.shapes import GreyImages, Images, PerImage


@torch.no_grad()
def positives(nvae: NVAE, images: GreyImages, stage: EBMSettings, noise: NoiseSource) -> Images:
    """Convert training images (B, C, H, W) uint8 to the energy's input, in [0, 1].

    Args:
        stage: `quantize_positives`: bit depth of the NVAE's training instead of 8 bits; `positives`: unchanged, or with
            the decoder's pixel noise (`match_noise`).
        noise: source of that noise, one index per image.
    """
    x = nvae.as_input(images) if stage.quantize_positives else images.to(nvae.device, nvae.dtype) / 255.0
    return x if stage.positives == "clean" else match_noise(nvae(nvae.as_input(images), noise=noise).pixels, x, noise)


class ContrastiveDivergence(NamedTuple):
    """Loss of one iteration, and its energies."""

    loss: Tensor
    """mean E(x⁺) − mean E(x⁻) + penalty, scalar, with gradient."""
    positive: PerImage
    """Energies of the data, (B,)."""
    negative: PerImage
    """Energies of the chains' images, (B,)."""

    @property
    def gap(self) -> Tensor:
        """mean E(x⁺) − mean E(x⁻)."""
        return (self.positive.mean() - self.negative.mean()).detach()

    @property
    def spread(self) -> Tensor:
        """Standard deviation of the energies around their two means."""
        return torch.stack([self.positive.detach().var(), self.negative.detach().var()]).mean().sqrt()


def contrastive_divergence(
    energy: Callable[[Tensor], Tensor],
    positive: Images,
    negative: Images,
    energy_penalty: float = 0.0,
    gradient_penalty: float = 0.0,
) -> ContrastiveDivergence:
    """Contrastive divergence (VAEBM eq. 5), with penalties on the energies' magnitude and on their gradients.

    Args:
        positive: data, (B, C, H, W) in [0, 1].
        negative: images of the chains, same shape.
        energy_penalty: weight of mean E(x⁺)² + mean E(x⁻)².
        gradient_penalty: weight of ½ (mean ‖∇E(x⁺)‖² + mean ‖∇E(x⁻)‖²), for an energy that is twice differentiable.
    """
    if gradient_penalty:
        positive, negative = positive.detach().requires_grad_(), negative.detach().requires_grad_()
    if isinstance(energy, EnergyNetwork):  # no image's energy depends on the others: one pass takes fewer operations
        data, chains = energy(torch.cat([positive, negative])).split([len(positive), len(negative)])
    else:
        data, chains = energy(positive), energy(negative)
    loss = data.mean() - chains.mean()
    if energy_penalty:
        loss = loss + energy_penalty * (data.square().mean() + chains.square().mean())
    if gradient_penalty:
        slopes = torch.autograd.grad(data.sum() + chains.sum(), (positive, negative), create_graph=True)
        loss = loss + gradient_penalty / 2 * sum(slope.square().flatten(1).sum(dim=1).mean() for slope in slopes)
    return ContrastiveDivergence(loss, data, chains)


@torch.no_grad()
def adaptive_clip(optimizer: torch.optim.Adam) -> None:
    """Clip every gradient element at 3 √(v / (1 − β₂^t)) + 0.1, with Adam's v before this step (Du et al.).

    Parameters without Adam state are not clipped.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if parameter.grad is None or not state:
                continue
            bound = 3.0 * (state["exp_avg_sq"] / (1.0 - group["betas"][1] ** float(state["step"]))).sqrt() + 0.1
            parameter.grad.copy_(parameter.grad.clamp(-bound, bound))


class WeightAverage:
    """Exponential moving average of parameters, with a warm-up that removes the initial values; decay in [0, 1)."""

    def __init__(self, parameters: Iterable[Tensor], decay: float):
        self.live = list(parameters)
        self.decay = decay
        self.updates = 0
        self.mean = [parameter.detach().clone() for parameter in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Add the current values."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9.0))
        torch._foreach_lerp_(self.mean, [parameter.detach() for parameter in self.live], 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Averages and the number of updates."""
        return {"mean": self.mean, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved average."""
        self.updates = state["updates"]
        for mean, saved in zip(self.mean, state["mean"], strict=True):
            mean.copy_(saved)
