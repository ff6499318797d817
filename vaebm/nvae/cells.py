"""Residual cells: skip connections, operations of the branches, and architectures (NVAE section 3.1, appendix A)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vaebm.config.nvae import Architecture
from vaebm.nvae.layers import (
    BatchNorm,
    BatchNormSwish,
    DataInitializedConv2d,
    NormalizedConv2d,
    PlainConv2d,
    SqueezeExcitation,
    recomputation,
)

Resample = Literal["none", "down", "up"]

RESIDUAL_SCALE = 0.1
"""Weight of a residual branch."""


# skip connections
class FactorizedReduce(nn.Module):
    """Skip connection that halves the resolution: four 1×1 convolutions, one per pixel of each 2×2 block.

    They are one matrix product of the blocks: four backward passes of strided convolutions take four times as long.
    """

    convs: Sequence[NormalizedConv2d]

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        quarter = channels_out // 4
        widths = (quarter, quarter, quarter, channels_out - 3 * quarter)
        convs = (NormalizedConv2d(channels_in, width, 1, stride=2) for width in widths)
        self.convs = nn.ModuleList(convs)  # type: ignore[assignment]  # ModuleList is not generic

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H/2, W/2), even H and W."""
        blocks = F.silu(x).permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)
        rows = [conv.effective_weight().flatten(1) for conv in self.convs]
        width, places = rows[0].shape[1], (0, 3, 1, 2)
        weight = torch.cat([F.pad(row, (k * width, (3 - k) * width)) for k, row in zip(places, rows, strict=True)])
        bias = torch.cat([conv.bias for conv in self.convs])  # type: ignore[misc]  # all have one
        out = F.linear(blocks, weight, bias).permute(0, 3, 1, 2)
        return out if x.is_contiguous(memory_format=torch.channels_last) else out.contiguous()


class BilinearUp(nn.Module):
    """Skip connection that doubles the resolution: a 1×1 convolution, then bilinear interpolation.

    The published order is the other one. The values are equal, and this one has a quarter of the products.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = NormalizedConv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, 2H, 2W)."""
        return F.interpolate(self.conv(x), scale_factor=2, mode="bilinear", align_corners=True)


# operations
Operation = Callable[[int, int, Resample], nn.Module]
"""(channels in, channels out, change of resolution) → one operation of a residual branch."""


def _stride(resample: Resample) -> int:
    return 2 if resample == "down" else 1


def _nearest_up(resample: Resample) -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2, mode="nearest")] if resample == "up" else []


def bn_swish_conv(channels_in: int, channels_out: int, resample: Resample, dilation: int = 1) -> nn.Module:
    """`res_bnswish` (dilated: `res_bnswish5`): batch norm, swish, 3×3 normalised convolution."""
    conv = NormalizedConv2d(channels_in, channels_out, 3, stride=_stride(resample), dilation=dilation)
    return nn.Sequential(BatchNormSwish(channels_in), *_nearest_up(resample), conv)


def bn_elu_conv(channels_in: int, channels_out: int, resample: Resample) -> nn.Module:
    """`res_bnelu`: batch norm, ELU, 3×3 normalised convolution."""
    conv = NormalizedConv2d(channels_in, channels_out, 3, stride=_stride(resample))
    return nn.Sequential(BatchNorm(channels_in), nn.ELU(), *_nearest_up(resample), conv)


def elu_conv(channels_in: int, channels_out: int, resample: Resample) -> nn.Module:
    """`res_elu`: ELU, 3×3 normalised convolution with data-dependent initialisation."""
    conv = DataInitializedConv2d(channels_in, channels_out, 3, stride=_stride(resample))
    return nn.Sequential(nn.ELU(), *_nearest_up(resample), conv)


def inverted_residual(
    channels_in: int, channels_out: int, resample: Resample, expansion: int, kernel: int = 5, groups: int = 0
) -> nn.Module:
    """`mconv_e<expansion>k<kernel>g<groups>`: 1×1 expansion, k×k, 1×1 projection, with batch norms around each.

    The k×k convolution has `groups` groups; 0: depthwise.
    """
    hidden = channels_in * expansion
    return nn.Sequential(
        *_nearest_up(resample),
        BatchNorm(channels_in),
        PlainConv2d(channels_in, hidden, 1),
        BatchNormSwish(hidden),
        PlainConv2d(hidden, hidden, kernel, stride=_stride(resample), groups=groups or hidden),
        BatchNormSwish(hidden),
        PlainConv2d(hidden, channels_out, 1),
        BatchNorm(channels_out),
    )


class Operations(NamedTuple):
    """Operations of the cells' branches in each part of the network."""

    preprocess: Sequence[Operation]
    encoder: Sequence[Operation]
    decoder: Sequence[Operation]
    postprocess: Sequence[Operation]


def _everywhere(operation: Operation) -> Operations:
    return Operations(*[[operation, operation]] * 4)


_DILATED: Operation = partial(bn_swish_conv, dilation=2)
_E3: Sequence[Operation] = [partial(inverted_residual, expansion=3)]
_E6: Sequence[Operation] = [partial(inverted_residual, expansion=6)]
_E3_GROUPED: Sequence[Operation] = [partial(inverted_residual, expansion=3, groups=8)]
_E6_WIDE: Sequence[Operation] = [partial(inverted_residual, expansion=6, kernel=11)]
_RESIDUAL: Sequence[Operation] = [bn_swish_conv, bn_swish_conv]


def _depthwise_decoder(*residual: Operation) -> Operations:
    return Operations(preprocess=residual, encoder=residual, decoder=_E6, postprocess=_E3)


ARCHITECTURES: dict[Architecture, Operations] = {
    "res_mbconv": _depthwise_decoder(bn_swish_conv, bn_swish_conv),
    "res53_mbconv": _depthwise_decoder(_DILATED, bn_swish_conv),
    "res35_mbconv": _depthwise_decoder(bn_swish_conv, _DILATED),
    "res55_mbconv": _depthwise_decoder(_DILATED, _DILATED),
    "mbconv_res": Operations(preprocess=_E3, encoder=_E6, decoder=_RESIDUAL, postprocess=_RESIDUAL),
    "mbconv_sep": Operations(preprocess=_E3, encoder=_E6, decoder=_E6, postprocess=_E3),
    "mbconv_sep11": Operations(preprocess=_E3, encoder=_E6_WIDE, decoder=_E6_WIDE, postprocess=_E3),
    "mbconv_den": Operations(preprocess=_E3_GROUPED, encoder=_E6, decoder=_E6, postprocess=_E3_GROUPED),
    "res_bnswish": _everywhere(bn_swish_conv),
    "res_bnelu": _everywhere(bn_elu_conv),
    "res_elu": _everywhere(elu_conv),
}
"""The published architectures by name."""


class ResidualCell(nn.Module):
    """skip(x) + 0.1 · SE(branch(x)) (NVAE section 3.1); the first operation changes channels and resolution."""

    recompute = False
    """Recompute activations in the backward pass (gradient checkpointing)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        resample: Resample,
        operations: Sequence[Operation],
        *,
        squeeze_excitation: bool,
    ):
        super().__init__()
        skips = {"down": FactorizedReduce, "up": BilinearUp}
        self.skip = skips[resample](channels_in, channels_out) if resample != "none" else nn.Identity()
        branch = [operations[0](channels_in, channels_out, resample)]
        branch += [operation(channels_out, channels_out, "none") for operation in operations[1:]]
        if squeeze_excitation:
            branch.append(SqueezeExcitation(channels_out))
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._sum, x, use_reentrant=False, preserve_rng_state=False, context_fn=recomputation)
        return self._sum(x)

    def _sum(self, x: Tensor) -> Tensor:
        *operations, last = self.branch
        if not isinstance(last, SqueezeExcitation):
            return torch.add(self.skip(x), self.branch(x), alpha=RESIDUAL_SCALE)
        out = x
        for operation in operations:
            out = operation(out)
        return last.gated_sum(self.skip(x), out, RESIDUAL_SCALE)


def set_recompute(network: nn.Module, recompute: bool) -> None:
    """Set `ResidualCell.recompute` for every cell of the network."""
    for cell in network.modules():
        if isinstance(cell, ResidualCell):
            cell.recompute = recompute
