"""The energy network with the weights that it has (VAEBM appendix E)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.energy.network import LIPSWISH, EnergyBlock, EnergyNetwork
from vaebm.fast.layers import Convolution, Swish, through


class Block:
    """Block of the energy network between unscaled swishes: x stands for 1.1 times what the module has there."""

    def __init__(self, block: EnergyBlock, like: Tensor):
        first, second = Convolution.of(block.first), Convolution.of(block.second)
        skip = None if block.skip is None else Convolution.of(block.skip)
        for convolution in (first, second, skip):
            if convolution is not None:
                convolution.weight = convolution.weight / LIPSWISH
        self.down = block.down
        self.branch = first.ready(like), Swish(), (second.pooled() if block.down else second).ready(like)
        self.skip = None if skip is None else skip.ready(like)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        branch = through(self.branch, x)
        if self.skip is None:
            return F.silu(torch.add(branch, x, alpha=1.0 / LIPSWISH))
        return F.silu(branch + self.skip(F.avg_pool2d(x, 2) if self.down else x))


class Energy:
    """The energy network with the weights that it has now, E(x): (B,).

    Args:
        energy: read once.
        dtype: of its features; their sum and the head are of the network's type. None: as the network.
    """

    def __init__(self, energy: EnergyNetwork, dtype: torch.dtype | None = None):
        head = energy.head.weight.detach()
        like = head.to(dtype)
        self.stem = Convolution.of(energy.stem).ready(like)
        self.blocks = [Block(cast(EnergyBlock, block), like) for block in energy.blocks]
        self.weight, self.bias = head / LIPSWISH, energy.head.bias.detach().clone()

    def __call__(self, x: Tensor) -> Tensor:
        """Energies (B,) of images (B, C, H, W) in [0, 1]."""
        x = F.silu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return F.linear(x.sum(dim=(2, 3), dtype=self.weight.dtype), self.weight, self.bias)[:, 0]

    def become(self, other: Energy) -> bool:
        """Take over the weights of another one in place; whether that can be: both must be of one architecture and type."""
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
        """All that a pass reads."""
        for layer in (self.stem, *(each for block in self.blocks for each in (*block.branch, block.skip))):
            if layer is not None:
                yield from layer.tensors()
        yield from (self.weight, self.bias)


def prepare_energy(energy: nn.Module, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
    """E(x) → (B,) with the weights that it has now; a network of another kind is left as it is.

    Args:
        dtype: of its features; None: as the network.
    """
    return Energy(energy, dtype) if isinstance(energy, EnergyNetwork) else energy
