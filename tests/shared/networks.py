"""The smallest networks that have everything: for 8×8 images."""

from vaebm.config import EnergyNetworkSettings, NVAENetworkSettings

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
