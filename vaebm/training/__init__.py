"""Shared parts of all trainings: the loop (resume, history, limits) and the spectral penalty."""
