"""The ablation's energy on pixels (VAEBM table 4)."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import nn

from vaebm.chain.langevin import PotentialFunction
from vaebm.config.ebm import ChainSettings, Start
from vaebm.fast import half_square, prepare_energy
from vaebm.model.scores import Estimates
from vaebm.model.vaebm import NO_CHAIN, VAEBM
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE, LatentDecoder
from vaebm.nvae.pixel_distributions import Pixels, PointImage
from vaebm.system.errors import check_choice
from vaebm.system.shapes import Images, Latents, PerImage


class PixelEBM(VAEBM, potential="pixels"):
    """The ablation's energy on pixels, p(x) ∝ exp(−E(x)) (VAEBM table 4).

    Langevin steps move the images, which may leave [0, 1]; samples are clamped. They start at decoder means of draws
    from the NVAE's prior (`prior`), the only use of the NVAE, or at uniform noise (`uniform`).

    Raises:
        UserError: another start, or an NVAE without a Gaussian decoder.
    """

    potentials = ("pixels",)
    no_likelihood_reason = (
        "an energy on pixels gives log p(x) only up to log Z, and has no bound on it; it is scored by −E(x) alone"
    )

    def __init__(self, nvae: NVAE, energy: nn.Module, start: Start, chain: ChainSettings = NO_CHAIN):
        super().__init__(nvae, energy, "pixels", chain)
        check_choice("start", start, get_args(Start))
        self.start = start

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """One shape, that of the images."""
        return [self.nvae.shape]

    @property
    def decoder(self) -> LatentDecoder:
        """The model itself."""
        return self

    def decode(self, eps_z: Sequence[Latents]) -> tuple[Pixels, PerImage]:
        """The images x = eps_z[0], and zeros (B,) in place of log p(z)."""
        return PointImage(eps_z[0]), eps_z[0].new_zeros(len(eps_z[0]))

    def potential(self, eps_z: Sequence[Latents], eps_x: Images) -> PerImage:
        """U = E(x) + ½‖ε_x‖² for the images x = eps_z[0], (B,); nothing else depends on `eps_x`."""
        return self._energy(eps_z[0]) + 0.5 * eps_x.square().flatten(1).sum(1)

    def chain_potential(self) -> PotentialFunction:
        """`potential` of the list [x, eps_x], prepared with the energy's present weights."""
        assert self.energy is not None
        energy = self.energy if self.dtype == torch.float64 else prepare_energy(self.energy, self.chain_dtype)
        return lambda eps: energy(eps[0]) + half_square(eps[-1])

    def initial_noise(self, noise: NoiseSource, temperature: float = 1.0) -> tuple[list[Latents], Images]:
        """Start of chains: a list of one tensor, the images (B, C, H, W), and standard normal noise of their shape."""
        eps_z, eps_x = super().initial_noise(noise, temperature)
        if self.start == "prior":
            return [self.nvae.decode(eps_z)[0].mean], eps_x
        return noise.uniform([self.nvae.shape], device=self.device, dtype=eps_x.dtype), eps_x

    def _estimate(self, x: Images, noise: NoiseSource, draws: int) -> Estimates:
        return Estimates(None, None, self._energy(x).double())
