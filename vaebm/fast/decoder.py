"""The decoder of a frozen NVAE, prepared for chains (NVAE section 2, VAEBM section 3.2)."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vaebm.fast.fold import fold
from vaebm.fast.layers import ELU, BilinearUpsample, Convolution, Layer, Residual, Tape, apply_layers, backward_layers
from vaebm.nvae.cells import BilinearUp, ResidualCell
from vaebm.nvae.distributions import BOUND, LEAST_SIGMA, LOG_2PI
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
    return Residual(branch, [Convolution(cell.skip.conv).finalize(like), BilinearUpsample()])


class PreparedCell(nn.Module):
    """`prepare_cell` as a module, without gradients."""

    def __init__(self, cell: nn.Module, like: Tensor):
        super().__init__()
        self.layer = prepare_cell(cell, like)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        return self.layer.forward(x, None)


def with_prepared_cells(nvae: NVAE) -> NVAE:
    """Copy an NVAE in evaluation mode with prepared cells in the decoder; all other weights are shared."""
    known: dict[int, Any] = {id(each): each for each in itertools.chain(nvae.parameters(), nvae.buffers())}
    cells, like = itertools.chain(*(group.cells for group in nvae.groups), nvae.postprocess), nvae.prior_constant
    return copy.deepcopy(nvae, known | {id(cell): PreparedCell(cell, like.detach()) for cell in cells})


class PreparedGroup:
    """A latent group of the decoder: prior of z from the state above, then the state below."""

    def __init__(self, group: LatentGroup, like: Tensor):
        self.cells = [prepare_cell(cell, like) for cell in group.cells]
        self.prior = [] if group.first else prepare_last(group.prior_parameters, like)
        self.combine = Convolution(group.combine_decoder).finalize(like)

    def forward(self, state: Tensor, eps: Tensor, tape: Tape | None) -> tuple[Tensor, Tensor]:
        """State above (B, C, h, w) and noise (B, latents, h, w) → state below, and σ of the prior."""
        state = apply_layers(self.cells, state, tape)
        # The first prior has one m and one ℓ for all latents: 0.
        raw = apply_layers(self.prior, state, tape).to(eps.dtype) if self.prior else eps.new_zeros(1, 2, 1, 1)
        clamped = torch.tanh(raw / BOUND)  # as in `Normal`, with one tanh for m and ℓ
        mean, log_sigma = (BOUND * clamped).chunk(2, dim=1)
        sigma = log_sigma.exp() + LEAST_SIGMA
        z = torch.addcmul(mean, sigma, eps).to(state.dtype)
        if tape is not None:
            tape.tensors.extend((eps, clamped, sigma))
        return self.combine.forward(torch.cat([state, z], dim=1), tape), sigma

    def backward(self, gradient: Tensor, of_sigma: Tensor | None, tape: Tape) -> tuple[Tensor, Tensor]:
        """Gradients of the state above and of the noise, from those of the state below and of σ."""
        gradient = self.combine.backward(gradient, tape)
        sigma, clamped, eps = (tape.tensors.pop() for _ in range(3))
        state, z = gradient.split([gradient.shape[1] - eps.shape[1], eps.shape[1]], dim=1)
        z = z.to(eps.dtype)
        if self.prior:
            of_sigma = z * eps if of_sigma is None else torch.addcmul(of_sigma, z, eps)
            raw = torch.cat([z, of_sigma.mul_(sigma - LEAST_SIGMA)], dim=1)
            raw = torch.ops.aten.tanh_backward(raw, clamped).to(state.dtype)
            state = backward_layers(self.prior, raw, tape).add_(state)
        return backward_layers(self.cells, state, tape), z * sigma


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
        if torch.is_grad_enabled() and any(each.requires_grad for each in eps):
            logits, *sigmas = _Decode.apply(self, *eps)  # type: ignore[no-untyped-call]  # torch declares none
        else:
            logits, *sigmas = self.forward(eps, None)
        return pixels_of(self.settings, logits), sigmas

    def forward(self, eps: Sequence[Tensor], tape: Tape | None) -> list[Tensor]:
        """Parameters of p(x|z), then σ of each group's prior; `tape` is None where there is no backward pass."""
        state, sigmas = self.constant.expand(len(eps[0]), -1, -1, -1), []
        for group, each in zip(self.groups, eps, strict=True):
            state, sigma = group.forward(state, each, tape)
            sigmas.append(sigma)
        return [apply_layers(self.pixels, state, tape).to(eps[0].dtype), *sigmas]

    def backward(self, gradient: Tensor, of_sigmas: Sequence[Tensor | None], tape: Tape) -> list[Tensor]:
        """Gradient of each group's noise from those of the outputs of `forward`."""
        state, of_noise = backward_layers(self.pixels, gradient.to(self.constant.dtype), tape), []
        for group, of_sigma in zip(reversed(self.groups), reversed(of_sigmas), strict=True):
            state, eps = group.backward(state, of_sigma, tape)
            of_noise.append(eps)
        return of_noise[::-1]

    def tensors(self) -> Iterator[Tensor]:
        """Tensors that a pass reads, except those of the NVAE."""
        groups = itertools.chain(*((*group.cells, *group.prior, group.combine) for group in self.groups))
        for layer in (*groups, *self.pixels):
            yield from layer.tensors()

    def decode(self, eps: Sequence[Tensor]) -> tuple[Pixels, Tensor]:
        """As `NVAE.decode` at temperature 1: p(x|z), and log p(z), (B,)."""
        pixels, sigmas = self.pixels_and_sigmas(eps)
        return pixels, -negative_log_prior(eps, sigmas)


class _Decode(torch.autograd.Function):
    """A prepared decoder as one operation of autograd: noise of each group → parameters of p(x|z), σ of each prior."""

    @staticmethod
    def forward(ctx: Any, decoder: PreparedDecoder, *eps: Tensor) -> tuple[Tensor, ...]:
        tape = Tape([], [])
        outputs = decoder.forward(eps, tape)
        ctx.decoder, ctx.shapes = decoder, tape.shapes
        ctx.save_for_backward(outputs[0], *tape.tensors)
        ctx.set_materialize_grads(False)  # the potential `noise` does not use σ
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *of_sigmas: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, *tensors = ctx.saved_tensors
        gradient = torch.zeros_like(logits) if gradient is None else gradient
        return None, *ctx.decoder.backward(gradient, of_sigmas, Tape(tensors, list(ctx.shapes)))


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
        rows = torch.cat([part.flatten(1) for part in parts], dim=1)
        return 0.5 * torch.linalg.vecdot(rows, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(part * gradients[0].reshape(-1, *[1] * (part.dim() - 1)) for part in ctx.saved_tensors)


def half_square(*parts: Tensor) -> Tensor:
    """½‖ε‖² over all parts (B, …) of each chain, (B,)."""
    return _HalfSquare.apply(*parts)  # type: ignore[no-untyped-call]  # torch declares no types here
