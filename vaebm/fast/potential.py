"""The chain's U(ε) from a prepared decoder and energy (VAEBM section 3.2)."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from vaebm.config.ebm import PotentialKind
from vaebm.fast.cuda_graph import GraphedChain
from vaebm.fast.decoder import PreparedDecoder, half_square, negative_log_prior
from vaebm.fast.energy import PreparedEnergy
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.nvae.pixel_distributions import PixelNormal


class PreparedPotential:
    """`VAEBM.potential` of a list of noise tensors, the pixels' last; a `chain.langevin.PotentialFunction`.

    `noise`: U = E(x) + ½‖ε‖². `density`: U = E(x) − log p(z) − log p(x|z). A `prior` adds E_ε(ε_z).
    """

    def __init__(
        self,
        decoder: PreparedDecoder,
        energy: Callable[[Tensor], Tensor],
        kind: PotentialKind,
        prior: Callable[[Sequence[Tensor]], Tensor] | None = None,
    ):
        self.decoder, self.energy, self.kind, self.prior = decoder, energy, kind, prior
        self._graph: GraphedChain | None = None

    def __call__(self, eps: Sequence[Tensor]) -> Tensor:
        """U(ε), (B,)."""
        *eps_z, eps_x = eps
        pixels, sigmas = self.decoder.pixels_and_sigmas(eps_z)
        assert isinstance(pixels, PixelNormal)
        x = pixels.sample(eps_x)
        energy = self.energy(x) if self.prior is None else self.energy(x) + self.prior(eps_z)
        if self.kind == "density":
            return energy + negative_log_prior(eps_z, sigmas) - pixels.chain_log_prob(x).sum(dim=(1, 2, 3))
        return energy + half_square(*eps)

    def load_weights_(self, other: Self) -> bool:
        """Copy the energy of `other` in place, so that a recorded step stays valid.

        False, with nothing copied, unless decoder, kind and prior are the same and the energies' architectures fit.
        """
        if self.decoder is not other.decoder or self.kind != other.kind or self.prior is not other.prior:
            return False
        mine, new = self.energy, other.energy
        return isinstance(mine, PreparedEnergy) and isinstance(new, PreparedEnergy) and mine.load_weights_(new)

    def replay(self, eps: Sequence[Tensor], *, steps: int, step_size: float, noise: NoiseSource) -> list[Tensor]:
        """Run `chain.langevin.langevin` on a GPU by replaying a recorded step; the latest record is kept."""
        with torch.cuda.device(eps[0].device):
            if self._graph is None or self._graph.key != GraphedChain.key_of(eps, step_size):
                self._graph = None  # free its memory before the next graph takes some
                self._graph = GraphedChain(self, eps, step_size)
            return self._graph.run(eps, steps, noise)


class PreparationCache:
    """Decoders and the potential prepared for one model; copies start empty, since a recorded step cannot be copied."""

    def __init__(self) -> None:
        self._version: object = None
        self._decoders: dict[torch.dtype | None, PreparedDecoder] = {}
        self._potential: PreparedPotential | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparationCache, ()

    def decoder(self, nvae: NVAE, dtype: torch.dtype | None) -> PreparedDecoder:
        """The decoder prepared for the present weights of `nvae`."""
        # changes if a parameter or buffer is replaced or changed in place, except through `.data`
        version = [(each.data_ptr(), each._version) for each in itertools.chain(nvae.parameters(), nvae.buffers())]
        if self._version != version:
            self._version, self._decoders = version, {}
        if dtype not in self._decoders:
            self._decoders[dtype] = PreparedDecoder(nvae, dtype)
        return self._decoders[dtype]

    def potential(self, new: PreparedPotential) -> PreparedPotential:
        """The same object as before where it can load the weights of `new`, otherwise `new`."""
        if self._potential is None or not self._potential.load_weights_(new):
            self._potential = new
        return self._potential
