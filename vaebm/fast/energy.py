"""The energy network with the weights that it has (VAEBM appendix E)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.ebm.network import LIPSWISH, EnergyBlock, EnergyNetwork
from vaebm.fast.layers import Convolution


class Block:
    """Block of the energy network between unscaled swishes: x stands for 1.1 times what the module has there."""

    def __init__(self, block: EnergyBlock, like: Tensor):
        first, second = Convolution.of(block.first), Convolution.of(block.second)
        skip = None if block.skip is None else Convolution.of(block.skip)
        for convolution in (first, second, skip):
            if convolution is not None:
                convolution.weight = convolution.weight / LIPSWISH
        self.down = block.down
        self.first, self.second = first.ready(like), (second.pooled() if block.down else second).ready(like)
        self.skip = None if skip is None else skip.ready(like)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        branch = self.second(F.silu(self.first(x)))
        if self.skip is None:
            return F.silu(torch.add(branch, x, alpha=1.0 / LIPSWISH))
        return F.silu(branch + self.skip(F.avg_pool2d(x, 2) if self.down else x))


class Energy:
    """The energy network with the weights that it has now, E(x): (B,).

    Args:
        energy: read once.
    """

    def __init__(self, energy: EnergyNetwork):
        like = energy.head.weight.detach()
        self.stem = Convolution.of(energy.stem).ready(like)
        self.blocks = [Block(cast(EnergyBlock, block), like) for block in energy.blocks]
        self.weight, self.bias = like / LIPSWISH, energy.head.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """Energies (B,) of images (B, C, H, W) in [0, 1]."""
        x = F.silu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return F.linear(x.sum(dim=(2, 3)), self.weight, self.bias)[:, 0]


def prepare_energy(energy: nn.Module) -> Callable[[Tensor], Tensor]:
    """E(x) → (B,) with the weights that it has now; a network of another kind is left as it is."""
    return Energy(energy) if isinstance(energy, EnergyNetwork) else energy
