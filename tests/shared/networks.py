"""The smallest networks that have everything: for 8×8 images; and random ones for 16×16 whose batch norms are used
ones.
"""

import contextlib
import math
from collections.abc import Iterator
from types import SimpleNamespace

import jaxtyping
import torch
from torch import Tensor, nn

from vaebm.config import EnergyNetworkSettings, NVAENetworkSettings
from vaebm.energy.network import EnergyNetwork
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.nvae.pixel_distributions import PixelNormal

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


@contextlib.contextmanager
def as_a_user() -> Iterator[None]:
    """Calls without the checks of types that only tests have."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def random_pair(network: dict[str, object]) -> tuple[NVAE, EnergyNetwork]:
    """A random pair for 16×16 colour images; batch norms have seen something, so that none is the identity."""
    torch.manual_seed(0)
    nvae = NVAE(NVAENetworkSettings.model_validate(network), (3, 16, 16))
    for layer in nvae.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            for tensor, low, high in (
                (layer.weight, 0.5, 1.5),
                (layer.bias, -0.5, 0.5),
                (layer.running_mean, -0.5, 0.5),
                (layer.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(tensor, low, high)
    energy = EnergyNetwork(EnergyNetworkSettings(channels=8, widths=[1, 1, 2], down=[0, 2]), 3)
    energy.initialize(torch.rand(16, 3, 16, 16))
    return nvae, energy


class LinearVAE(NVAE):
    """x = ½ + ½ (A z + s ε_x) with z = ε_z: a decoder whose chain has a stationary law in closed form.

    The mean may be anything and no pixel saturates: soft clamps are inverted, and A and s are small.
    """

    def __init__(self, matrix: Tensor, sigma: float = 0.02):
        nn.Module.__init__(self)  # none of an NVAE's networks
        self.sigma = sigma
        self.matrix = nn.Parameter(matrix, requires_grad=False)
        self.prior_constant, self.settings = self.matrix, NETWORK
        self.latent_shapes = [(matrix.shape[1], 1, 1)]
        self.shape = (1, matrix.shape[0], 1)

    def decode(self, eps: list[Tensor], temperature: float = 1.0) -> tuple[PixelNormal, Tensor]:
        mean = torch.einsum("pk,bk->bp", self.matrix, eps[0][:, :, 0, 0])[:, None, :, None]
        m = 5 * torch.atanh(mean / 5)
        ell = torch.full_like(m, 5 * math.atanh(math.log(self.sigma - 0.01) / 5))
        return PixelNormal(torch.cat([m, ell], dim=1)), -0.5 * eps[0].square().flatten(1).sum(1)

    def as_input(self, images: Tensor, noise: NoiseSource | None = None) -> Tensor:
        return images.to(self.matrix) / 255

    def forward(self, x: Tensor, noise: NoiseSource) -> SimpleNamespace:
        """σ is the same everywhere, so that any z does for the pixels' noise."""
        return SimpleNamespace(pixels=self.decode(noise.normal(self.latent_shapes, dtype=x.dtype))[0])
