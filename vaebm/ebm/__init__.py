"""The energy network, the chain, and the energy's training (VAEBM sections 3.1 and 3.2)."""
