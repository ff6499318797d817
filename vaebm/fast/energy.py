"""The energy network, prepared for chains (VAEBM appendix E)."""

from collections.abc import Callable, Iterator
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.energy.network import LIPSWISH, EnergyBlock, EnergyNetwork
from vaebm.fast.layers import Convolution, Layer, MeanPool, Residual, Swish, run_layers
from vaebm.nvae.layers import DataInitializedConv2d


def prepare_block(block: EnergyBlock, like: Tensor) -> list[Layer]:
    """A block of the energy network with unscaled swishes: features are 1.1 times the module's."""

    def unscaled(layer: DataInitializedConv2d) -> Convolution:
        convolution = Convolution(layer)
        convolution.weight = convolution.weight / LIPSWISH
        return convolution

    first, second = unscaled(block.first), unscaled(block.second)
    branch = first.finalize(like), Swish(), (second.pooled() if block.down else second).finalize(like)
    if block.skip is None:
        return [Residual(branch, scale=1.0 / LIPSWISH), Swish()]
    return [Residual(branch, [*[MeanPool()] * block.down, unscaled(block.skip).finalize(like)]), Swish()]


class PreparedEnergy:
    """The energy network with its present weights, E(x): (B,).

    The features have the type `dtype`, by default the network's; their sum and the head have the network's type.
    """

    def __init__(self, energy: EnergyNetwork, dtype: torch.dtype | None = None):
        head = energy.head.weight.detach()
        like = head.to(dtype)
        blocks = [layer for block in energy.blocks for layer in prepare_block(block, like)]
        self.layers = [Convolution(energy.stem).finalize(like), Swish(), *blocks]
        self.weight, self.bias = head / LIPSWISH, energy.head.bias.detach().clone()

    def __call__(self, x: Tensor) -> Tensor:
        """Energies (B,) of images (B, C, H, W) in [0, 1]."""
        x = run_layers(self.layers, x)
        return F.linear(x.sum(dim=(2, 3), dtype=self.weight.dtype), self.weight, self.bias)[:, 0]

    def load_weights_(self, other: Self) -> bool:
        """Copy the weights of `other` in place; False, with nothing copied, if architecture or type differ."""
        present, new = list(self.tensors()), list(other.tensors())
        forms, others = ([(each.shape, each.dtype) for each in tensors] for tensors in (present, new))
        if forms != others or any(each.is_inference() for each in present):
            return False
        torch._foreach_copy_(present, new)
        return True

    def tensors(self) -> Iterator[Tensor]:
        """Tensors that a pass reads."""
        for layer in self.layers:
            yield from layer.tensors()
        yield from (self.weight, self.bias)


def prepare_energy(energy: nn.Module, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
    """Prepare E(x) → (B,) as `PreparedEnergy`; a network of another class is returned as it is."""
    return PreparedEnergy(energy, dtype) if isinstance(energy, EnergyNetwork) else energy
