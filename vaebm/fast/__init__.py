"""The decoder of a frozen NVAE and the energy, prepared for chains: the modules' functions in fewer operations.

Preparation runs once, before a chain, in double precision. Weights are normalised. Batch norms, constant factors and
mean pools are folded into convolutions. Pointwise layers move to the lower resolution of an upsampling. Each activation
keeps one tensor for the backward pass, and parameters have no gradient. Features may be bfloat16.

`run_langevin` distributes chains over CPU threads, or records a step on a GPU (`cuda_graph`, `triton_kernels`).
The modules themselves (`model.VAEBM.potential`) are the reference in tests. docs/explanation/speed.md says why.
"""

from vaebm.fast.decoder import PreparedDecoder, half_square, with_prepared_cells
from vaebm.fast.energy import PreparedEnergy, prepare_energy
from vaebm.fast.potential import PreparationCache, PreparedPotential
from vaebm.fast.run_chains import run_chain, run_langevin

__all__ = [
    "PreparationCache",
    "PreparedDecoder",
    "PreparedEnergy",
    "PreparedPotential",
    "half_square",
    "prepare_energy",
    "run_chain",
    "run_langevin",
    "with_prepared_cells",
]
