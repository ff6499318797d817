"""The frozen NVAE's decoder and the energy, prepared for chains: the same functions as the modules', in fewer and cheaper operations.

What is done once, before a chain, in double precision: weights are normalised; batch norms, constant factors and mean pools
are folded into the convolutions beside them; what acts on each pixel alone moves to the lower resolution of an upsampling.
What is left keeps one tensor for the backward pass per activation, and its parameters have no gradient. The modules themselves
(`model.VAEBM.potential`) are the reference that this is tested against; docs/speed.md has what was tried and what it brought.
"""

from vaebm.fast.decoder import Decoder, half_square
from vaebm.fast.energy import Energy, prepare_energy
from vaebm.fast.potential import PreparedPotential, stamp
from vaebm.fast.threads import move

__all__ = ["Decoder", "Energy", "PreparedPotential", "half_square", "move", "prepare_energy", "stamp"]
