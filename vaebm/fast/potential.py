"""The chain's U(ε) from a prepared decoder and energy (VAEBM section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vaebm.fast.cuda_graph import GraphedChain
from vaebm.fast.decoder import Decoder, half_square, negative_log_prior
from vaebm.fast.energy import Energy
from vaebm.noise import NoiseSource
from vaebm.nvae.pixel_distributions import PixelNormal


class PreparedPotential:
    """`VAEBM.potential` of a list of noise tensors, the pixels' last; a `chain.langevin.Potential`.

    Args:
        decoder: p(x|z).
        energy: E(x), (B,).
        kind: of the potential.
    """

    def __init__(self, decoder: Decoder, energy: Callable[[Tensor], Tensor], kind: Literal["noise", "density"]):
        self.decoder, self.energy, self.kind = decoder, energy, kind
        self._graph: GraphedChain | None = None

    def __call__(self, eps: Sequence[Tensor]) -> Tensor:
        """U(ε), (B,)."""
        *eps_z, eps_x = eps
        pixels, sigmas = self.decoder.pixels_and_sigmas(eps_z)
        assert isinstance(pixels, PixelNormal)
        x = pixels.sample(eps_x)
        if self.kind == "density":
            return self.energy(x) + negative_log_prior(eps_z, sigmas) - pixels.chain_log_prob(x).sum(dim=(1, 2, 3))
        return self.energy(x) + half_square(*eps)

    @property
    def recordable(self) -> bool:
        """Whether a GPU can record a step: what an energy of another kind does is not known."""
        return isinstance(self.energy, Energy)

    def become(self, other: PreparedPotential) -> bool:
        """Take over the energy of another potential in place, so that a recorded step goes on with it; whether that can be.

        It can where both have the same decoder, and energies of one kind and architecture.
        """
        if self.decoder is not other.decoder or self.kind != other.kind:
            return False
        return isinstance(self.energy, Energy) and isinstance(other.energy, Energy) and self.energy.become(other.energy)

    def replay(self, eps: Sequence[Tensor], *, steps: int, step_size: float, noise: NoiseSource) -> list[Tensor]:
        """As `chain.langevin.langevin` on a GPU, by a step that is recorded at the first chains of their number and shape; the last record is kept."""
        with torch.cuda.device(eps[0].device):
            if self._graph is None or self._graph.key != GraphedChain.key_of(eps, step_size):
                self._graph = None  # its memory is free before that of the next one is taken
                self._graph = GraphedChain(self, eps, step_size)
            return self._graph.move(eps, steps, noise)


def stamp(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes when a parameter or buffer of the module is replaced, or changed in place; not through `.data`, which leaves no trace."""
    return tuple(
        (tensor.data_ptr(), tensor._version)
        for tensors in (module.parameters(), module.buffers())
        for tensor in tensors
    )
