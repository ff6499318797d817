"""Energy on the noise of the latent groups, p(ε) ∝ N(ε; 0, I) exp(−E_ε(ε)), a sum of multilayer perceptrons."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.config import NoiseEnergySettings
from vaebm.noise import NoiseSource
from vaebm.system.checkpoint import load_model, of_this_version
from vaebm.system.device import freeze
from vaebm.system.shapes import Latents, PerImage


class NoiseNetwork(nn.Module):
    """Multilayer perceptron with swish, zero before its training."""

    layers: Sequence[nn.Linear]

    def __init__(self, dimensions: int, hidden: Sequence[int], dropout: float):
        super().__init__()
        self.dropout = dropout
        self.layers = nn.ModuleList(  # type: ignore[assignment]  # ModuleList is not generic
            itertools.starmap(nn.Linear, itertools.pairwise([dimensions, *hidden, 1]))
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, flat: Tensor, noise: NoiseSource | None = None, step: int = 0) -> PerImage:
        """Energies (B,) of noise (B, D); `noise`: drop hidden units by it, the masks of a batch as one sample."""
        *hidden, last = self.layers
        shapes = [(len(flat), layer.out_features) for layer in hidden]
        masks = (
            noise.uniform(shapes, step=step, device=flat.device, dtype=flat.dtype) if noise else [None] * len(hidden)
        )
        for layer, mask in zip(hidden, masks, strict=True):
            flat = F.silu(layer(flat))
            if mask is not None:
                flat = flat * (mask[0] >= self.dropout) / (1.0 - self.dropout)
        return last(flat)[:, 0]


class NoiseEnergy(nn.Module):
    """E_ε(ε), low for the noise of encoded images, whose latent groups have `shapes`."""

    networks: Sequence[NoiseNetwork]
    """One per round of the training."""

    def __init__(self, settings: NoiseEnergySettings, shapes: Sequence[Sequence[int]]):
        super().__init__()
        self.settings, self.shapes = settings, [tuple(shape) for shape in shapes]
        dimensions = sum(map(math.prod, shapes))
        self.networks = nn.ModuleList(  # type: ignore[assignment]  # ModuleList is not generic
            NoiseNetwork(dimensions, settings.hidden, settings.dropout) for _ in range(settings.rounds)
        )

    def forward(self, eps: Sequence[Latents], rounds: int | None = None) -> PerImage:
        """Energies (B,) of the noise of each latent group, in decoding order; `rounds`: of the first networks."""
        flat = one_vector(eps)
        return torch.stack([network(flat) for network in self.networks[:rounds]]).sum(0)


def one_vector(eps: Sequence[Latents]) -> Tensor:
    """The noise of all latent groups as one vector per image, (B, D)."""
    return torch.cat([part.flatten(1) for part in eps], dim=1)


def load_prior(path: Path | str, device: torch.device | str = "cpu") -> NoiseEnergy:
    """Load the energy on noise of a model file, frozen, in eval mode.

    Raises:
        UserError: the file is missing, or not an energy on noise of this version, or torch cannot use the device.
    """
    content = load_model(path, "prior")
    with of_this_version(path, "an energy on noise"):
        prior = NoiseEnergy(NoiseEnergySettings.model_validate(content["network"]), content["shape"])
        prior.load_state_dict(content["weights"])
    return freeze(prior, device)
