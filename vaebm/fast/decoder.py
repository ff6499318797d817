"""The decoder of a frozen NVAE, prepared for chains (NVAE section 2, VAEBM section 3.2)."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vaebm.fast.fold import fold
from vaebm.fast.layers import ELU, BilinearUpsample, Convolution, Layer, Residual, run_layers
from vaebm.nvae.cells import BilinearUp, ResidualCell
from vaebm.nvae.distributions import LOG_2PI, Normal
from vaebm.nvae.latent_group import LatentGroup
from vaebm.nvae.layers import NormalizedConv2d
from vaebm.nvae.model import NVAE
from vaebm.nvae.pixel_distributions import Pixels, pixels_of


def prepare_cell(cell: nn.Module, like: Tensor) -> Residual:
    """A residual cell, skip(x) + 0.1 · SE(branch(x)), with a folded branch."""
    assert isinstance(cell, ResidualCell)
    branch = fold(cell.branch, like)
    if not isinstance(cell.skip, BilinearUp):
        return Residual(branch)
    # The 1×1 convolution commutes with the interpolation and runs at the low resolution.
    return Residual(branch, [Convolution(cell.skip.conv).finalize(like), BilinearUpsample()])


class PreparedGroup:
    """A latent group of the decoder: prior of z from the state above, then the state below."""

    def __init__(self, group: LatentGroup, like: Tensor):
        self.latents = group.posterior_parameters.out_channels // 2
        self.cells = [prepare_cell(cell, like) for cell in group.cells]
        self.prior = [] if group.first else prepare_last(group.prior_parameters, like)
        self.combine = Convolution(group.combine_decoder).finalize(like)

    def __call__(self, state: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """State above (B, C, h, w) and noise (B, latents, h, w) → state below, and σ of the prior."""
        state = run_layers(self.cells, state)
        raw = run_layers(self.prior, state).to(eps.dtype) if self.prior else eps.new_zeros(1, 2 * self.latents, 1, 1)
        m, ell = raw.chunk(2, dim=1)
        prior = Normal(m, ell)
        return self.combine(torch.cat([state, prior.sample(eps).to(state.dtype)], dim=1)), prior.sigma


class PreparedDecoder:
    """The decoder of a frozen NVAE in evaluation mode, with its present weights.

    The features have the type `dtype`, by default the NVAE's; latents and p(x|z) have the noise's type.
    """

    def __init__(self, nvae: NVAE, dtype: torch.dtype | None = None):
        like = nvae.prior_constant.detach().to(dtype)
        self.settings, self.constant = nvae.settings, like
        self.groups = [PreparedGroup(group, like) for group in nvae.groups]
        cells = [prepare_cell(cell, like) for cell in nvae.postprocess]
        self.pixels = [*cells, *prepare_last(nvae.pixel_parameters, like)]

    def pixels_and_sigmas(self, eps: Sequence[Tensor]) -> tuple[Pixels, list[Tensor]]:
        """p(x|z) for the z of this noise, and σ of each group's prior, which broadcasts to (B, latents, h, w)."""
        state, sigmas = self.constant.expand(len(eps[0]), -1, -1, -1), []
        for group, each in zip(self.groups, eps, strict=True):
            state, sigma = group(state, each)
            sigmas.append(sigma)
        return pixels_of(self.settings, run_layers(self.pixels, state).to(eps[0].dtype)), sigmas

    def tensors(self) -> Iterator[Tensor]:
        """Tensors that a pass reads, except those of the NVAE."""
        groups = itertools.chain(*((*group.cells, *group.prior, group.combine) for group in self.groups))
        for layer in (*groups, *self.pixels):
            yield from layer.tensors()

    def decode(self, eps: Sequence[Tensor]) -> tuple[Pixels, Tensor]:
        """As `NVAE.decode` at temperature 1: p(x|z), and log p(z), (B,)."""
        pixels, sigmas = self.pixels_and_sigmas(eps)
        return pixels, -negative_log_prior(eps, sigmas)


def prepare_last(layers: nn.Sequential, like: Tensor) -> list[Layer]:
    """An ELU and the convolution after it, the last of `layers`."""
    return [ELU(), Convolution(cast(NormalizedConv2d, layers[-1])).finalize(like)]


def negative_log_prior(eps: Sequence[Tensor], sigmas: Sequence[Tensor]) -> Tensor:
    """−log p(z) = ½‖ε_z‖² + Σ ln σ + ½ n ln 2π, (B,) (VAEBM section 3.2)."""
    each = [sigma.log().expand_as(part).flatten(1).sum(1) for part, sigma in zip(eps, sigmas, strict=True)]
    return half_square(*eps) + torch.stack(each).sum(0) + 0.5 * LOG_2PI * sum(part[0].numel() for part in eps)


class _HalfSquare(torch.autograd.Function):
    """½‖ε‖², with the gradient ε."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        rows = [part.flatten(1) for part in parts]
        return 0.5 * torch.stack([torch.linalg.vecdot(row, row) for row in rows]).sum(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(part * gradients[0].reshape(-1, *[1] * (part.dim() - 1)) for part in ctx.saved_tensors)


def half_square(*parts: Tensor) -> Tensor:
    """½‖ε‖² over all parts (B, …) of each chain, (B,)."""
    return _HalfSquare.apply(*parts)  # type: ignore[no-untyped-call]  # torch declares no types here
