"""Volume-preserving inverse autoregressive flows after the posterior (NVAE section 3.2; Kingma et al., 2016)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.nvae.layers import NormalizedConv2d


def causal_mask(
    channels_in: int,
    channels_out: int,
    kernel: int,
    *,
    depthwise: bool = False,
    zero_diagonal: bool = False,
    mirror: bool,
) -> Tensor:
    """Mask of an autoregressive convolution, (out, in / groups, k, k), zeros and ones.

    Positions are ordered row by row, and channels within a position in blocks. An output depends on earlier positions,
    and at its own position on blocks up to its own; `zero_diagonal` excludes the output's own block. With `depthwise`
    each output channel depends on one input channel. `mirror` reverses the order of positions, not of channels. One of
    the numbers of channels divides the other, and the kernel size is odd.
    """
    centre = kernel // 2
    mask = torch.zeros(channels_out, 1 if depthwise else channels_in, kernel, kernel)
    mask[:, :, :centre] = 1.0
    mask[:, :, centre, :centre] = 1.0
    if mirror:
        mask = mask.flip(2, 3)
    if depthwise:
        mask[:, :, centre, centre] = 0.0 if zero_diagonal else 1.0
        return mask
    blocks = min(channels_in, channels_out)
    block_out = torch.arange(channels_out) * blocks // channels_out
    block_in = torch.arange(channels_in) * blocks // channels_in
    seen = block_in < block_out[:, None] if zero_diagonal else block_in <= block_out[:, None]
    mask[:, :, centre, centre] = seen.float()
    return mask


class CausalConv2d(NormalizedConv2d):
    """Normalised 3×3 convolution with a `causal_mask` without diagonal; the row of zeros is left out of the kernel."""

    def __init__(self, channels_in: int, channels_out: int, *, mirror: bool):
        mask = causal_mask(channels_in, channels_out, 3, zero_diagonal=True, mirror=mirror)
        super().__init__(channels_in, channels_out, 3, bias=False, mask=mask)
        self.rows, self.beyond = (slice(1, 3), (0, 1)) if mirror else (slice(0, 2), (1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H, W)."""
        return F.conv2d(F.pad(x, (0, 0, *self.beyond)), self.effective_weight()[:, :, self.rows], padding=(0, 1))


class FlowCell(nn.Module):
    """z − μ(z) with autoregressive μ, in reverse order of the positions if `mirror`: the log-determinant is 0."""

    def __init__(self, latents: int, mirror: bool):
        super().__init__()
        hidden = 6 * latents
        self.expand = CausalConv2d(latents, hidden, mirror=mirror)
        mask = causal_mask(hidden, hidden, 5, depthwise=True, mirror=mirror)
        self.depthwise = NormalizedConv2d(hidden, hidden, 5, groups=hidden, bias=False, mask=mask)
        self.shift = NormalizedConv2d(hidden, latents, 1, mask=causal_mask(hidden, latents, 1, mirror=mirror))
        with torch.no_grad():
            self.shift.log_weight_norm.add_(math.log(0.1))  # starts near the identity

    def forward(self, z: Tensor) -> Tensor:
        """(B, latents, h, w), same shape."""
        hidden = F.elu(self.depthwise(F.elu(self.expand(z))))
        return z - self.shift(F.elu(hidden))  # two ELUs in a row, as published


class FlowPair(nn.Sequential):
    """A flow cell and one with reversed positions; log-determinant 0."""

    def __init__(self, latents: int):
        super().__init__(FlowCell(latents, mirror=False), FlowCell(latents, mirror=True))
