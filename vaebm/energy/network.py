"""The energy network: weight-normalised residual blocks without batch norm (VAEBM appendix E)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.config import EnergyNetworkSettings
from vaebm.nvae.layers import DataInitializedConv2d, data_initialization
from vaebm.system.checkpoint import load_model
from vaebm.system.device import place
from vaebm.system.errors import UserError

LIPSWISH = 1.1
"""What the swish is divided by."""


def lipswish(x: Tensor) -> Tensor:
    """swish(x) / 1.1, which has a Lipschitz constant below 1."""
    return F.silu(x).div_(LIPSWISH)  # autograd keeps the input of silu alone


class EnergyBlock(nn.Module):
    """Two 3×3 convolutions beside a skip connection, then a 2×2 mean pool where `down`."""

    def __init__(self, channels_in: int, channels_out: int, down: bool):
        super().__init__()
        self.first = DataInitializedConv2d(channels_in, channels_out, 3)
        self.second = DataInitializedConv2d(channels_out, channels_out, 3)
        self.skip = (
            DataInitializedConv2d(channels_in, channels_out, 1, bias=False)
            if down or channels_in != channels_out
            else None
        )
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        hidden = self.second(lipswish(self.first(x)))
        out = hidden + (x if self.skip is None else self.skip(x))
        return lipswish(F.avg_pool2d(out, 2) if self.down else out)


class EnergyNetwork(nn.Module):
    """E(x): low for images that look like data.

    Args:
        settings: the architecture.
        channels: C of the images.
    """

    def __init__(self, settings: EnergyNetworkSettings, channels: int):
        super().__init__()
        self.settings, self.channels = settings, channels
        widths = [settings.channels, *(settings.channels * width for width in settings.widths)]
        self.stem = DataInitializedConv2d(channels, settings.channels, 3)
        self.blocks = nn.ModuleList(
            EnergyBlock(width_in, width_out, block in settings.down)
            for block, (width_in, width_out) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Energies (B,) of images (B, C, H, W) in [0, 1]."""
        x = lipswish(self.stem(x))
        for block in self.blocks:
            x = block(x)
        energy: Tensor = self.head(x.sum(dim=(2, 3)))[:, 0]
        return energy

    @torch.no_grad()
    def initialize(self, images: Tensor) -> Tensor:
        """Data-dependent initialisation by a batch of images (B, C, H, W) in [0, 1]; their energies (B,) afterwards."""
        with data_initialization(self):
            return self(images)


def load_energy(path: Path | str, device: torch.device | str = "cpu") -> EnergyNetwork:
    """The trained energy network in a model file: frozen.

    Raises:
        UserError: no such file, or not an energy network.
    """
    content = load_model(path, "energy")
    try:
        energy = EnergyNetwork(EnergyNetworkSettings.model_validate(content["network"]), content["shape"][0])
        energy.load_state_dict(content["weights"])
    except (KeyError, ValueError, RuntimeError):
        raise UserError(
            f"{path}: expected an energy network of this version, found one with other settings or weights; train or convert it again"
        ) from None
    return place(energy.requires_grad_(False).eval(), torch.device(device))
