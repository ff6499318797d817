"""The frozen NVAE's decoder and the energy, prepared for chains: the same functions as the modules', in fewer and cheaper operations, or
in bfloat16 near them.

What is done once, before a chain, in double precision: weights are normalised; batch norms, constant factors and mean pools
are folded into the convolutions beside them; what acts on each pixel alone moves to the lower resolution of an upsampling.
What is left keeps one tensor for the backward pass per activation, and its parameters have no gradient. The modules themselves
(`model.VAEBM.potential`) are the reference that this is tested against. `run_chains.move` then shares chains out to a CPU's threads, or
records their step on a GPU (`cuda_graph`), where the middle of each cell is one kernel (`triton_kernels`). docs/speed.md has what was tried and
what it brought.
"""

from vaebm.fast.decoder import Decoder, half_square
from vaebm.fast.energy import Energy, prepare_energy
from vaebm.fast.potential import PreparedPotential, stamp
from vaebm.fast.run_chains import move

__all__ = ["Decoder", "Energy", "PreparedPotential", "half_square", "move", "prepare_energy", "stamp"]
