"""The energy network, prepared for chains (VAEBM appendix E)."""

import itertools
from collections.abc import Callable, Iterator
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.energy.network import LIPSWISH, EnergyBlock, EnergyNetwork
from vaebm.fast.layers import Convolution, Swish, run_branch
from vaebm.nvae.layers import DataInitializedConv2d


class PreparedBlock:
    """A block of the energy network with unscaled swishes: features are 1.1 times the module's."""

    def __init__(self, block: EnergyBlock, like: Tensor):
        def unscaled(layer: DataInitializedConv2d) -> Convolution:
            convolution = Convolution(layer)
            convolution.weight = convolution.weight / LIPSWISH
            return convolution

        first, second = unscaled(block.first), unscaled(block.second)
        self.down = block.down
        self.branch = first.finalize(like), Swish(), (second.pooled() if block.down else second).finalize(like)
        self.skip = None if block.skip is None else unscaled(block.skip).finalize(like)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        branch = run_branch(self.branch, x)
        if self.skip is None:
            return F.silu(torch.add(branch, x, alpha=1.0 / LIPSWISH))
        return F.silu(branch + self.skip(F.avg_pool2d(x, 2) if self.down else x))


class PreparedEnergy:
    """The energy network with its present weights, E(x): (B,).

    The features have the type `dtype`, by default the network's; their sum and the head have the network's type.
    """

    def __init__(self, energy: EnergyNetwork, dtype: torch.dtype | None = None):
        head = energy.head.weight.detach()
        like = head.to(dtype)
        self.stem = Convolution(energy.stem).finalize(like)
        self.blocks = [PreparedBlock(block, like) for block in energy.blocks]
        self.weight, self.bias = head / LIPSWISH, energy.head.bias.detach().clone()

    def __call__(self, x: Tensor) -> Tensor:
        """Energies (B,) of images (B, C, H, W) in [0, 1]."""
        x = F.silu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return F.linear(x.sum(dim=(2, 3), dtype=self.weight.dtype), self.weight, self.bias)[:, 0]

    def load_weights_(self, other: Self) -> bool:
        """Copy the weights of `other` in place; False, with nothing copied, if architecture or type differ."""
        pairs = list(itertools.zip_longest(self.tensors(), other.tensors()))
        if any(
            mine is None or new is None or mine.shape != new.shape or mine.dtype != new.dtype or mine.is_inference()
            for mine, new in pairs
        ):
            return False
        for mine, new in pairs:
            mine.copy_(new)
        return True

    def tensors(self) -> Iterator[Tensor]:
        """Tensors that a pass reads."""
        for layer in (self.stem, *(each for block in self.blocks for each in (*block.branch, block.skip))):
            if layer is not None:
                yield from layer.tensors()
        yield from (self.weight, self.bias)


def prepare_energy(energy: nn.Module, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
    """Prepare E(x) → (B,) as `PreparedEnergy`; a network of another class is returned as it is."""
    return PreparedEnergy(energy, dtype) if isinstance(energy, EnergyNetwork) else energy
