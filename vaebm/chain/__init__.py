"""Markov chains towards exp(−U), and their diagnostics (VAEBM section 3.2)."""
