"""The decoder of a frozen NVAE (NVAE section 2, VAEBM section 3.2)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.fast.fold import fold
from vaebm.fast.layers import Convolution, Layer, through
from vaebm.nvae.cells import RESIDUAL_SCALE, BilinearUp, ResidualCell
from vaebm.nvae.distributions import LOG_2PI, Normal
from vaebm.nvae.layers import NormalizedConv2d
from vaebm.nvae.model import NVAE, LatentGroup
from vaebm.nvae.pixel_distributions import Pixels, pixels_of


class Cell:
    """skip(x) + 0.1 · SE(branch(x))."""

    def __init__(self, cell: ResidualCell, like: Tensor):
        self.branch = fold(cell.branch, like, RESIDUAL_SCALE)
        # The 1×1 convolution acts on the low resolution: it and the interpolation change places.
        self.skip = Convolution.of(cell.skip.conv).ready(like) if isinstance(cell.skip, BilinearUp) else None

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        skip = (
            x
            if self.skip is None
            else F.interpolate(self.skip(x), scale_factor=2.0, mode="bilinear", align_corners=True)
        )
        return skip + through(self.branch, x)

    def layers(self) -> list[Layer]:
        """All that it has prepared."""
        return self.branch if self.skip is None else [*self.branch, self.skip]


class Group:
    """A latent group of the decoder: state above → prior of z, state below."""

    def __init__(self, group: LatentGroup, like: Tensor):
        self.latents = group.posterior_parameters.out_channels // 2
        self.cells = [Cell(cast(ResidualCell, cell), like) for cell in cast(nn.Sequential, group.cells)]
        self.prior = (
            None if group.first else Convolution.of(cast(NormalizedConv2d, group.prior_parameters[1])).ready(like)
        )
        self.combine = Convolution.of(group.combine_decoder).ready(like)

    def __call__(self, state: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """State above (B, C, h, w) and noise (B, latents, h, w) → state below, and σ of the prior, (B, latents, h, w)."""
        for cell in self.cells:
            state = cell(state)
        raw = eps.new_zeros(1, 2 * self.latents, 1, 1) if self.prior is None else self.prior(F.elu(state)).to(eps.dtype)
        prior = Normal(raw[:, : self.latents], raw[:, self.latents :])
        return self.combine(torch.cat([state, prior.sample(eps).to(state.dtype)], dim=1)), prior.sigma


class Decoder:
    """The decoder of a frozen NVAE.

    Args:
        nvae: in evaluation mode; read once.
        dtype: of its features; latents and the distribution of the pixels are of the noise's. None: as the NVAE.
    """

    def __init__(self, nvae: NVAE, dtype: torch.dtype | None = None):
        like = nvae.prior_constant.detach().to(dtype)
        self.settings, self.constant = nvae.settings, like
        self.groups = [Group(group, like) for group in nvae.groups]
        self.postprocess = [Cell(cast(ResidualCell, cell), like) for cell in nvae.postprocess]
        self.pixels = Convolution.of(cast(NormalizedConv2d, nvae.pixel_parameters[1])).ready(like)

    def pixels_and_sigmas(self, eps: Sequence[Tensor]) -> tuple[Pixels, list[Tensor]]:
        """p(x|z) for z = T(ε_z), and σ of each group's prior, (B or 1, latents, h, w) or of a size that broadcasts to it."""
        state, sigmas = self.constant.expand(len(eps[0]), -1, -1, -1), []
        for group, each in zip(self.groups, eps, strict=True):
            state, sigma = group(state, each)
            sigmas.append(sigma)
        for cell in self.postprocess:
            state = cell(state)
        return pixels_of(self.settings, self.pixels(F.elu(state)).to(eps[0].dtype)), sigmas

    def tensors(self) -> Iterator[Tensor]:
        """All that a pass reads and the NVAE does not have."""
        cells = itertools.chain(*(group.cells for group in self.groups), self.postprocess)
        others = itertools.chain(*((group.prior, group.combine) for group in self.groups), [self.pixels])
        for layer in itertools.chain(*(cell.layers() for cell in cells), others):
            if layer is not None:
                yield from layer.tensors()

    def decode(self, eps: Sequence[Tensor]) -> tuple[Pixels, Tensor]:
        """As `NVAE.decode` at temperature 1: p(x|z), and log p(z), (B,)."""
        pixels, sigmas = self.pixels_and_sigmas(eps)
        return pixels, -negative_log_prior(eps, sigmas)


def negative_log_prior(eps: Sequence[Tensor], sigmas: Sequence[Tensor]) -> Tensor:
    """−log p(z) = ½‖ε_z‖² + Σ ln σ + ½ n ln 2π, (B,): z is not needed."""
    each = [sigma.log().expand_as(part).flatten(1).sum(1) for part, sigma in zip(eps, sigmas, strict=True)]
    return half_square(*eps) + torch.stack(each).sum(0) + 0.5 * LOG_2PI * sum(part[0].numel() for part in eps)


class _HalfSquare(torch.autograd.Function):
    """½‖ε‖², with the gradient ε."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        return 0.5 * torch.stack([torch.linalg.vecdot(flat, flat) for flat in (part.flatten(1) for part in parts)]).sum(
            0
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(part * gradients[0].reshape(-1, *[1] * (part.dim() - 1)) for part in ctx.saved_tensors)


def half_square(*parts: Tensor) -> Tensor:
    """½‖ε‖² over all parts (B, …) of each chain, (B,)."""
    return cast(Tensor, _HalfSquare.apply(*parts))  # type: ignore[no-untyped-call]  # torch declares no types here
