"""The baseline of the speed measurements: the arithmetic of the published programs.

Swish is x · σ(x) after a separate batch norm. Weights are normalised at every call. Tensors have the contiguous
layout, and whole distributions are computed where a sample suffices. Networks are the package's with these layers in
place of its own, so weights are the same. Trainers differ in parameters and penalties (`workloads.training_of`).
`tests/unit/test_as_published.py` compares both.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.ebm.contrastive_divergence import ContrastiveDivergence, contrastive_divergence
from vaebm.energy.network import EnergyBlock, EnergyNetwork
from vaebm.model import VAEBM
from vaebm.nvae.cells import FactorizedReduce, ResidualCell
from vaebm.nvae.flows import CausalConv2d
from vaebm.nvae.layers import (
    BatchNorm,
    BatchNormSwish,
    DataInitializedConv2d,
    NormalizedConv2d,
    PlainConv2d,
    SqueezeExcitation,
)
from vaebm.training.spectral import SpectralPenalty

M = TypeVar("M", bound=nn.Module)


def swish(x: Tensor) -> Tensor:
    """x · σ(x), two operations."""
    return x * torch.sigmoid(x)


def lipswish(x: Tensor) -> Tensor:
    """x · σ(x) / 1.1, three operations."""
    return x * torch.sigmoid(x) / 1.1


class PublishedConv2d(NormalizedConv2d):
    """Convolution with the weight exp(L) · w / (‖w‖ + 1e-5), normalised at every call."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        weight = self.weight if self.mask is None else self.weight * self.mask
        norm = torch.sqrt(torch.sum(weight * weight, dim=[1, 2, 3])).view(-1, 1, 1, 1)
        weight = torch.exp(self.log_weight_norm) * weight / (norm + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PublishedPlainConv2d(PlainConv2d):
    """The library's convolution."""

    forward = nn.Conv2d.forward


class PublishedBatchNormSwish(BatchNormSwish):
    """A batch norm, then a swish."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        return swish(nn.BatchNorm2d.forward(self, x))


class PublishedFactorizedReduce(FactorizedReduce):
    """Skip connection that halves the resolution."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H/2, W/2)."""
        x = swish(x)
        views = (x, x[:, :, 1:, 1:], x[:, :, :, 1:], x[:, :, 1:, :])
        return torch.cat([conv(view) for conv, view in zip(self.convs, views, strict=True)], dim=1)


class PublishedSqueezeExcitation(SqueezeExcitation):
    """Squeeze and excitation by a mean over the map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        gate = self.gate(torch.mean(x, dim=[2, 3]))
        return x * gate.view(*gate.shape, 1, 1)


class PublishedCell(ResidualCell):
    """Residual cell: the branch times 0.1, then the sum."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        return self.skip(x) + 0.1 * self.branch(x)


class PublishedEnergyBlock(EnergyBlock):
    """Block of the energy network."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        out = self.second(lipswish(self.first(x))) + (x if self.skip is None else self.skip(x))
        return lipswish(F.avg_pool2d(out, 2) if self.down else out)


class PublishedEnergyNetwork(EnergyNetwork):
    """The energy network."""

    def forward(self, x: Tensor) -> Tensor:
        """Energies (B,) of images (B, C, H, W) in [0, 1]."""
        x = lipswish(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(torch.sum(x, dim=[2, 3])).squeeze(1)


PUBLISHED_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    NormalizedConv2d: PublishedConv2d,
    DataInitializedConv2d: PublishedConv2d,
    CausalConv2d: PublishedConv2d,
    PlainConv2d: PublishedPlainConv2d,
    BatchNormSwish: PublishedBatchNormSwish,
    FactorizedReduce: PublishedFactorizedReduce,
    SqueezeExcitation: PublishedSqueezeExcitation,
    ResidualCell: PublishedCell,
    EnergyBlock: PublishedEnergyBlock,
    EnergyNetwork: PublishedEnergyNetwork,
}
"""Layer of the package → its published form."""


def as_published(module: M) -> M:
    """Copy an NVAE or an energy network, with published arithmetic and the contiguous layout."""
    module = copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for layer in module.modules():
        layer.__class__ = PUBLISHED_LAYERS.get(type(layer), type(layer))  # same parameters, another forward pass
    return module


class SeparateParameters:
    """In place of `FlatParameters`: separate tensors, and each convolution normalises its own weight."""

    def __init__(self, module: nn.Module):
        self.parameters = self.tensors = list(module.parameters())

    def optimizer(self, kind: type[torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
        """An optimiser of the parameters."""
        return kind(self.parameters, foreach=True if kind is torch.optim.Adamax else None, **options)

    def zero_gradients(self) -> None:
        """Remove all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def requires_grad_(self, needed: bool) -> None:
        """Set whether the parameters need gradients."""
        for parameter in self.parameters:
            parameter.requires_grad_(needed)

    def normalized_weights(self) -> contextlib.AbstractContextManager[None]:
        """Without effect: convolutions normalise their weights."""
        return contextlib.nullcontext()


class PublishedSpectralPenalty(SpectralPenalty):
    """The penalty with the library's normalisations, in each iteration of each shape."""

    def forward(self) -> Tensor:
        """The sum of the largest singular values."""
        iterations, self._first = 40 if self._first else 4, False
        total = []
        for number, group in enumerate(self.groups.values()):
            matrices = torch.stack([weight().flatten(1) for weight in group])
            u, v = self.get_buffer(f"u{number}"), self.get_buffer(f"v{number}")
            with torch.no_grad():
                for _ in range(iterations):
                    v.copy_(F.normalize(torch.bmm(u[:, None], matrices)[:, 0], dim=1, eps=1e-3))
                    u.copy_(F.normalize(torch.bmm(matrices, v[:, :, None])[:, :, 0], dim=1, eps=1e-3))
            total.append(torch.einsum("no,nok,nk->", u, matrices, v))
        return torch.stack(total).sum()


def batch_norm_penalty(norms: Iterable[BatchNorm]) -> Tensor:
    """Σ max |γ|, layer by layer."""
    return torch.stack([layer.weight.abs().max() for layer in norms]).sum()


def divergence_in_two_passes(energy: EnergyNetwork, *arguments: Any) -> ContrastiveDivergence:
    """`contrastive_divergence` with a pass for data and one for chains, as of any function of images."""
    return contrastive_divergence(energy.__call__, *arguments)


class Unprepared(VAEBM):
    """The model with chains through its modules, without preparation."""

    _prepares = False
