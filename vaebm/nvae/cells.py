"""The layers and residual cells that the NVAE and the energy network are built from (NVAE section 3.1 and appendix)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Resample = Literal["none", "down", "up"]

RESIDUAL_SCALE = 0.1
"""Weight of a residual branch."""


class NormalizedConv2d(nn.Conv2d):
    """Convolution with the weight exp(L) · w / ‖w‖, one norm and one L per output channel."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, bias: bool = True):
        super().__init__(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=bias)
        self.log_weight_norm = nn.Parameter(torch.log(self._norm().detach() + 1e-2))

    def _norm(self) -> Tensor:
        return torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True)

    def effective_weight(self) -> Tensor:
        """The weight that the convolution uses, (out, in, k, k)."""
        return self.weight * (self.log_weight_norm.exp() / (self._norm() + 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        return self._conv_forward(x, self.effective_weight(), self.bias)


class PlainConv2d(nn.Conv2d):
    """Convolution without bias or weight normalisation, inside the inverted residuals."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, depthwise: bool = False):
        super().__init__(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, groups=channels_in if depthwise else 1, bias=False)

    def effective_weight(self) -> Tensor:
        """The weight that the convolution uses, (out, in / groups, k, k)."""
        return self.weight


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with the NVAE's momentum of 0.05."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-5, momentum=0.05)


class BatchNormSwish(BatchNorm):
    """Batch norm, then swish."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        return F.silu(super().forward(x))


class SqueezeExcitation(nn.Module):
    """Gates each channel by a function of all channels' means."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 16, 4)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), same shape."""
        return x * self.gate(x.mean(dim=(2, 3)))[:, :, None, None]


class FactorizedReduce(nn.Module):
    """Skip connection that halves the resolution: four 1×1 convolutions, each on its own pixel of every 2×2 block."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        quarter = channels_out // 4
        widths = (quarter, quarter, quarter, channels_out - 3 * quarter)
        self.convs = nn.ModuleList(NormalizedConv2d(channels_in, width, 1, stride=2) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H/2, W/2), even H and W."""
        x = F.silu(x)
        views = (x, x[:, :, 1:, 1:], x[:, :, :, 1:], x[:, :, 1:, :])
        return torch.cat([conv(view) for conv, view in zip(self.convs, views, strict=True)], dim=1)


class BilinearUp(nn.Module):
    """Skip connection that doubles the resolution: bilinear interpolation, then a 1×1 convolution."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = NormalizedConv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))


def skip(channels_in: int, channels_out: int, resample: Resample) -> nn.Module:
    """The skip connection of a residual cell."""
    if resample == "down":
        return FactorizedReduce(channels_in, channels_out)
    if resample == "up":
        return BilinearUp(channels_in, channels_out)
    return nn.Identity()


def _nearest_up(resample: Resample) -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2, mode="nearest")] if resample == "up" else []


def bn_swish_conv(channels_in: int, channels_out: int, resample: Resample) -> nn.Module:
    """`res_bnswish`: batch norm, swish, 3×3 normalised convolution."""
    stride = 2 if resample == "down" else 1
    return nn.Sequential(BatchNormSwish(channels_in), *_nearest_up(resample), NormalizedConv2d(channels_in, channels_out, 3, stride=stride))


def inverted_residual(channels_in: int, channels_out: int, resample: Resample, expansion: int) -> nn.Module:
    """`mconv_eXk5g0`: expansion 1×1, depthwise 5×5, projection 1×1, batch norm before, between and after."""
    hidden = channels_in * expansion
    stride = 2 if resample == "down" else 1
    return nn.Sequential(
        *_nearest_up(resample),
        BatchNorm(channels_in),
        PlainConv2d(channels_in, hidden, 1),
        BatchNormSwish(hidden),
        PlainConv2d(hidden, hidden, 5, stride=stride, depthwise=True),
        BatchNormSwish(hidden),
        PlainConv2d(hidden, channels_out, 1),
        BatchNorm(channels_out),
    )


class ResidualCell(nn.Module):
    """skip(x) + 0.1 · SE(branch(x)).

    Args:
        expansion: of the inverted residual that is the branch, or None for two `res_bnswish`.
        squeeze_excitation: gate the branch.
    """

    def __init__(self, channels_in: int, channels_out: int, resample: Resample, *, expansion: int | None, squeeze_excitation: bool):
        super().__init__()
        self.skip = skip(channels_in, channels_out, resample)
        if expansion is None:
            branch = [bn_swish_conv(channels_in, channels_out, resample), bn_swish_conv(channels_out, channels_out, "none")]
        else:
            branch = [inverted_residual(channels_in, channels_out, resample, expansion)]
        if squeeze_excitation:
            branch.append(SqueezeExcitation(channels_out))
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        return torch.add(self.skip(x), self.branch(x), alpha=RESIDUAL_SCALE)


def convolution_weights(module: nn.Module) -> list[Callable[[], Tensor]]:
    """For each convolution of `module` the function that returns the weight that it uses now; for the spectral regulariser."""
    return [layer.effective_weight for layer in module.modules() if isinstance(layer, NormalizedConv2d | PlainConv2d)]
