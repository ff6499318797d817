"""Markov chains towards exp(−potential), and what they do (VAEBM section 3.2)."""
