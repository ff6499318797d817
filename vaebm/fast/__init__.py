"""The decoder of a frozen NVAE and the energy, prepared for chains: the modules' functions in fewer operations.

Preparation runs once, before a chain, in double precision. Weights are normalised. Batch norms, constant factors and
mean pools are folded into convolutions. Pointwise layers move to the lower resolution of an upsampling. Each activation
keeps one tensor for the backward pass, and parameters have no gradient. Features may be bfloat16.

`run_langevin` distributes chains over CPU threads, or records a step on a GPU (`cuda_graph`, `triton_kernels`).
The modules themselves (`model.VAEBM.potential`) are the reference in tests. docs/explanation/speed.md says why.
"""

from vaebm.fast.decoder import PreparedDecoder as PreparedDecoder
from vaebm.fast.decoder import half_square as half_square
from vaebm.fast.energy import PreparedEnergy as PreparedEnergy
from vaebm.fast.energy import prepare_energy as prepare_energy
from vaebm.fast.potential import PreparationCache as PreparationCache
from vaebm.fast.potential import PreparedPotential as PreparedPotential
from vaebm.fast.run_chains import run_chain as run_chain
from vaebm.fast.run_chains import run_langevin as run_langevin
