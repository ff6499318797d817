"""The smallest networks that have everything: for 8×8 images; and random ones for 16×16 whose batch norms are used ones."""

import torch
from torch import nn

from vaebm.config import EnergyNetworkSettings, NVAENetworkSettings
from vaebm.energy.network import EnergyNetwork
from vaebm.nvae.model import NVAE

NETWORK = NVAENetworkSettings(
    channels_encoder=4,
    channels_decoder=4,
    groups=[2],
    latents=2,
    preprocess_blocks=1,
    preprocess_cells=1,
    postprocess_cells=1,
    cells_encoder=1,
    cells_decoder=1,
)
ENERGY = EnergyNetworkSettings(channels=4, widths=[1, 2], down=[0])


def random_pair(network: dict[str, object]) -> tuple[NVAE, EnergyNetwork]:
    """A random pair for 16×16 colour images; batch norms have seen something, so that none is the identity."""
    torch.manual_seed(0)
    nvae = NVAE(NVAENetworkSettings.model_validate(network), (3, 16, 16))
    for layer in nvae.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            for tensor, low, high in ((layer.weight, 0.5, 1.5), (layer.bias, -0.5, 0.5), (layer.running_mean, -0.5, 0.5), (layer.running_var, 0.5, 1.5)):
                nn.init.uniform_(tensor, low, high)
    energy = EnergyNetwork(EnergyNetworkSettings(channels=8, widths=[1, 1, 2], down=[0, 2]), 3)
    energy.initialize(torch.rand(16, 3, 16, 16))
    return nvae, energy
