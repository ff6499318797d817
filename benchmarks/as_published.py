"""The baseline of the speed measurements: the arithmetic of the published programs, layer by layer.

Swish as x · σ(x), a batch norm of its own before it, weights normalised at every call, tensors in the contiguous layout,
whole distributions where only a sample is needed. Networks are the package's own with these layers in the place of theirs,
so that both have the same weights and the same trainers; `tests/unit/test_as_published.py` holds them equal.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.energy.network import EnergyBlock, EnergyNetwork
from vaebm.model import VAEBM
from vaebm.nvae.cells import FactorizedReduce, ResidualCell
from vaebm.nvae.layers import BatchNormSwish, DataInitializedConv2d, NormalizedConv2d, PlainConv2d, SqueezeExcitation

M = TypeVar("M", bound=nn.Module)


def swish(x: Tensor) -> Tensor:
    """x · σ(x), two operations."""
    return x * torch.sigmoid(x)


def lipswish(x: Tensor) -> Tensor:
    """x · σ(x) / 1.1, three operations."""
    return x * torch.sigmoid(x) / 1.1


class Convolution(NormalizedConv2d):
    """exp(L) · w / (‖w‖ + 1e-5), normalised anew at every call."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        weight = self.weight if self.mask is None else self.weight * self.mask
        norm = torch.sqrt(torch.sum(weight * weight, dim=[1, 2, 3])).view(-1, 1, 1, 1)
        weight = torch.exp(self.log_weight_norm) * weight / (norm + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Plain(PlainConv2d):
    """A convolution by the library."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        return nn.Conv2d.forward(self, x)


class Swish(BatchNormSwish):
    """A batch norm, then a swish."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        return swish(nn.BatchNorm2d.forward(self, x))


class Reduce(FactorizedReduce):
    """Skip connection that halves the resolution."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H/2, W/2)."""
        x = swish(x)
        views = (x, x[:, :, 1:, 1:], x[:, :, :, 1:], x[:, :, 1:, :])
        return torch.cat([conv(view) for conv, view in zip(self.convs, views, strict=True)], dim=1)


class Gate(SqueezeExcitation):
    """Squeeze and excitation by a mean over the map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        gate = self.gate(torch.mean(x, dim=[2, 3]))
        return x * gate.view(*gate.shape, 1, 1)


class Cell(ResidualCell):
    """The branch times 0.1, then the sum."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        return self.skip(x) + 0.1 * self.branch(x)


class Block(EnergyBlock):
    """Block of the energy network."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        out = self.second(lipswish(self.first(x))) + (x if self.skip is None else self.skip(x))
        return lipswish(F.avg_pool2d(out, 2) if self.down else out)


class Energy(EnergyNetwork):
    """The energy network."""

    def forward(self, x: Tensor) -> Tensor:
        """Energies (B,) of images (B, C, H, W) in [0, 1]."""
        x = lipswish(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(torch.sum(x, dim=[2, 3])).squeeze(1)


PUBLISHED: dict[type[nn.Module], type[nn.Module]] = {
    NormalizedConv2d: Convolution,
    DataInitializedConv2d: Convolution,
    PlainConv2d: Plain,
    BatchNormSwish: Swish,
    FactorizedReduce: Reduce,
    SqueezeExcitation: Gate,
    ResidualCell: Cell,
    EnergyBlock: Block,
    EnergyNetwork: Energy,
}
"""Layer of the package → the same one as published."""


def as_published(module: M) -> M:
    """A copy of an NVAE or an energy network that computes as published, in the contiguous layout; its weights are its own."""
    module = copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for layer in module.modules():
        layer.__class__ = PUBLISHED.get(type(layer), type(layer))  # the same parameters under another forward pass
    return module


class Unprepared(VAEBM):
    """The pair with chains through the modules as they are: nothing is prepared."""

    _prepares = False
