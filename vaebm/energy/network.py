"""The energy network: weight-normalised residual blocks without batch norm (VAEBM appendix E)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebm.config import ENERGIES, EnergyNetworkSettings, NetworkSettings
from vaebm.nvae.layers import DataInitializedConv2d, data_initialization
from vaebm.system.checkpoint import load_model, of_this_version
from vaebm.system.device import freeze
from vaebm.system.errors import UserError
from vaebm.system.plugins import imported
from vaebm.system.shapes import Images, Latents, PerImage

LIPSWISH = 1.1
"""Divisor of the swish."""


def lipswish(x: Tensor) -> Tensor:
    """swish(x) / 1.1, with a Lipschitz constant below 1 (VAEBM appendix E)."""
    return F.silu(x).div_(LIPSWISH)  # in place: autograd keeps only the input of silu


class EnergyBlock(nn.Module):
    """Two 3×3 convolutions and a skip connection, then a 2×2 mean pool if `down`."""

    def __init__(self, channels_in: int, channels_out: int, down: bool):
        super().__init__()
        self.first = DataInitializedConv2d(channels_in, channels_out, 3)
        self.second = DataInitializedConv2d(channels_out, channels_out, 3)
        changes = down or channels_in != channels_out
        self.skip = DataInitializedConv2d(channels_in, channels_out, 1, bias=False) if changes else None
        self.down = down

    def forward(self, x: Latents) -> Latents:
        """(B, in, H, W) → (B, out, H', W')."""
        hidden = self.second(lipswish(self.first(x)))
        out = hidden + (x if self.skip is None else self.skip(x))
        return lipswish(F.avg_pool2d(out, 2) if self.down else out)


class EnergyNetwork(nn.Module):
    """E(x), low for images like the data: an architecture by settings for images of C `channels` (VAEBM appendix E)."""

    blocks: Sequence[EnergyBlock]

    def __init__(self, settings: EnergyNetworkSettings, channels: int):
        super().__init__()
        self.settings, self.channels = settings, channels
        widths = [settings.channels, *(settings.channels * width for width in settings.widths)]
        self.stem = DataInitializedConv2d(channels, settings.channels, 3)
        self.blocks = nn.ModuleList(  # type: ignore[assignment]  # ModuleList is not generic
            EnergyBlock(width_in, width_out, block in settings.down)
            for block, (width_in, width_out) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, x: Images) -> PerImage:
        """Energies (B,) of images (B, C, H, W) in [0, 1].

        Raises:
            UserError: another number of dimensions or channels, or not a floating-point tensor.
        """
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 4 and x.shape[1] == self.channels):
            found = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else f"a value of type {type(x).__name__}"
            raise UserError(f"x: expected images (B, {self.channels}, H, W), floating-point in [0, 1], found {found}")
        x = lipswish(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.sum(dim=(2, 3)))[:, 0]

    @torch.no_grad()
    def initialize(self, images: Images) -> PerImage:
        """Set the scales and biases of the convolutions from images (B, C, H, W) in [0, 1]; return energies (B,)."""
        with data_initialization(self):
            return self(images)


def build_energy(settings: NetworkSettings, channels: int) -> nn.Module:
    """Build a registered energy network for images of C `channels`."""
    energy: nn.Module = imported(ENERGIES[settings.kind].network)(settings, channels)
    energy.settings = settings  # type: ignore[assignment]  # with which a model is saved; a plug-in's module has none
    return energy


def load_energy(path: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """Load the energy network of a model file, frozen, in eval mode: E(x), (B,), of images (B, C, H, W) in [0, 1].

    Raises:
        UserError: the file is missing, or not an energy network of this version, its plug-in is missing, or torch
            cannot use the device.
    """
    content = load_model(path, "energy")
    ENERGIES.check(content["network"].get("kind", "residual"))
    with of_this_version(path, "an energy network"):
        energy = build_energy(EnergyNetworkSettings.model_validate(content["network"]), content["shape"][0])
        energy.load_state_dict(content["weights"])
    return freeze(energy, device)
